"""``bseq heads``."""

from __future__ import annotations

from bseq_plugin.commands import Table, joined, out, styled


def heads() -> None:
    """Heads by kind, and where they come from: what answers ``bseq score``, ``demand``, ``next-k`` and ``multitask``.

    Example: `bseq heads`. A plugin that failed is shown with the reason.
    """
    from bseq_behaviour.contract.registry import head_manager

    table = Table("plugin", "distribution", "gives")
    for info in head_manager().infos():
        made = f"{info.distribution} {info.version}".strip()
        gives = "\n".join(f"{kind}: {', '.join(names)}" for kind, names in info.parts.items() if names)
        if info.error:
            table.row(info.name, made, joined(styled(f"failed: {info.error}", "red"), f"\n{gives}".rstrip()))
        else:
            table.row(info.name, made, gives.strip())
    out.print(table)
