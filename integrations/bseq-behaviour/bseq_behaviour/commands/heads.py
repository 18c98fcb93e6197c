"""``bseq heads``."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from bseq_plugin.commands import out


def heads() -> None:
    """Heads by kind, and where they come from: what answers ``bseq score``, ``demand``, ``next-k`` and ``multitask``.

    Example: `bseq heads`. A plugin that failed is shown with the reason.
    """
    from bseq_behaviour.contract.registry import head_manager

    table = Table("plugin", "distribution", "gives")
    for info in head_manager().infos():
        gives = "\n".join(f"{kind}: {', '.join(names)}" for kind, names in info.parts.items() if names)
        if info.error:
            gives = f"[red]failed: {escape(info.error)}[/red]\n{gives}"
        table.add_row(info.name, f"{info.distribution} {info.version}".strip(), gives.strip())
    out.print(table)
