"""The hooks are what a plugin can implement: the contract, without torch, FAISS or transformers.

A plugin is a module (or object) whose functions are marked with ``@bseq_plugin.hookimpl`` and which is named
in the entry-point group ``bseq``. The built-in parts come in by the same door (``bseq_plugin.builtin``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    import typer
    from torch import nn

    from bseq_plugin.events.events import Events
    from bseq_plugin.events.log_options import LogOptions
    from bseq_plugin.schema.encoders import HistoryEncoder, ItemEncoder, SequenceEncoder
    from bseq_plugin.schema.indexes import VectorIndex
    from bseq_plugin.schema.losses import SequenceLoss
    from bseq_plugin.schema.ranking_features import RankingFeature
    from bseq_plugin.schema.sources import CandidateSource

PROJECT = "bseq"
API_VERSION = 1

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class BseqSpecs:
    """One method a hook. List hooks return classes that carry a unique ``name``."""

    @hookspec
    def bseq_encoders(self) -> list[type[SequenceEncoder]]:  # type: ignore[empty-body]
        """Dense modules on packed events: ``PackedEvents -> states [T, D]``. They own no embedding tables."""

    @hookspec
    def bseq_losses(self) -> list[type[SequenceLoss]]:  # type: ignore[empty-body]
        """Losses of (state, target, candidates)."""

    @hookspec
    def bseq_item_encoders(self) -> list[type[ItemEncoder]]:  # type: ignore[empty-body]
        """Rows of the items table (text, categories, ...) -> vectors, for items nobody has touched yet as well."""

    @hookspec
    def bseq_indexes(self) -> list[type[VectorIndex]]:  # type: ignore[empty-body]
        """Inner-product indexes over item vectors."""

    @hookspec
    def bseq_candidate_sources(self) -> list[type[CandidateSource]]:  # type: ignore[empty-body]
        """Where candidates come from beside interest search."""

    @hookspec
    def bseq_ranking_features(self) -> list[type[RankingFeature]]:  # type: ignore[empty-body]
        """Columns for (user, candidate, at)."""

    @hookspec(firstresult=True)
    def bseq_read_events(
        self, source: object, columns: Mapping[str, str] | None, timestamp_unit: str | None, options: LogOptions
    ) -> Events | None:
        """Read ``source`` if you recognise it, else return None so that the next reader is asked.

        ``options`` has all that was asked for; what leaves rows out of it (``where`` and the like) is done to your
        events afterwards, if you don't.
        """

    @hookspec(firstresult=True)
    def bseq_attach(self, host: nn.Module, interest: HistoryEncoder, frozen: bool) -> nn.Module | None:
        """Wire ``interest`` into ``host`` if you know such models, else return None. Leave ``host`` as it is.

        A host with a method ``attach_interest(interest, frozen)`` does it by itself; no plugin is asked. The first line
        of your function's docstring says which models you know: `bseq plugins` shows it.
        """

    @hookspec
    def bseq_commands(self, app: typer.Typer) -> None:
        """Add commands to ``app``, an empty one of your own: they stand beside those of ``bseq``."""
