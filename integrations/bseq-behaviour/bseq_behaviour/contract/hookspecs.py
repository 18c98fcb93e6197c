"""The hook by which a plugin brings heads, in a pluggy project of its own: ``bseq_behaviour``.

A plugin is a module (or object) whose function is marked with ``@bseq_behaviour.hookimpl`` and which is named in the
entry-point group ``bseq_behaviour``. The heads of this package come in by the same hook.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from bseq_behaviour.contract.heads import BehaviourHead

PROJECT = "bseq_behaviour"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class HeadSpecs:
    """The one hook."""

    @hookspec
    def bseq_heads(self) -> list[type[BehaviourHead]]:  # type: ignore[empty-body]
        """What users will do: yes-or-no tasks, the catalogue, counts, the next events; one base class each."""
