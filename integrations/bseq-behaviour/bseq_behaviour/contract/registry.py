"""Which heads there are, by kind and name."""

from __future__ import annotations

from functools import cache
from typing import Any

import bseq_plugin as bseq
from bseq_behaviour.contract.hookspecs import PROJECT, HeadSpecs

ANSWERS = ("binary", "catalogue", "count", "sequence")
# heads come in by one hook, and say in `answer` of which kind they are
KINDS = {f"{answer} head": "bseq_heads" for answer in ANSWERS}


class HeadManager(bseq.PluginManager):
    """The heads of plugins. One name may be that of a head of each kind."""

    def __init__(self) -> None:
        super().__init__(PROJECT, HeadSpecs, KINDS)
        self._refused: dict[tuple[str, str], str] = {}  # (head of no kind, its plugin) -> what is wrong with it

    def is_of_kind(self, kind: str, part: type[Any], plugin: bseq.PluginInfo) -> bool:
        """Tell heads by what they answer. One that does not say it is its plugin's ``error``; the rest goes on."""
        answer, name = getattr(part, "answer", None), str(getattr(part, "name", ""))
        if answer not in ANSWERS and (name, plugin.name) not in self._refused:
            wrong = f"head {name!r} has answer = {answer!r}; subclass BinaryHead, CatalogueHead, CountHead or "
            wrong += "SequenceHead of bseq_behaviour, which say what a head answers"
            plugin.error = f"{plugin.error}; {wrong}" if plugin.error else wrong
            self._refused[name, plugin.name] = f"plugin {plugin.name!r} ({plugin.distribution}): {wrong}"
        return kind == f"{answer} head"

    def part(self, kind: str, name: str) -> type[Any]:
        """Return the head of ``kind`` called ``name``; of an unknown one, tell whether another kind has it.

        Raises PluginError for a head that does not say of which kind it is.
        """
        try:
            return super().part(kind, name)
        except bseq.UsageError as error:
            if refused := [message for (head, _), message in self._refused.items() if head == name]:
                raise bseq.PluginError("; ".join(refused)) from None
            siblings = [other for other in KINDS if other != kind and self._has(other, name)]
            told = "".join(f". {name!r} is a {other}" for other in siblings)
            raise bseq.UsageError(f"{error}{told}") from error.__cause__

    def _has(self, kind: str, name: str) -> bool:
        try:
            return name in self.parts(kind)
        except bseq.PluginError:  # two plugins use one name of that kind: no matter of who asked for another
            return False


@cache
def head_manager() -> HeadManager:
    """Return the process-wide manager, with the heads of this package and of all installed plugins."""
    from bseq_behaviour import __version__, heads

    manager = HeadManager()
    manager.register(heads, "builtin", distribution="bseq-behaviour", version=__version__)
    manager.load_entry_points()
    return manager
