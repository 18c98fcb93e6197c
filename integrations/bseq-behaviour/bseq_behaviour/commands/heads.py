"""``bseq heads``."""

from __future__ import annotations

from dataclasses import asdict

from bseq_plugin.commands import AsJson, ListFile, Table, joined, show, styled


def heads(as_json: AsJson = False, file: ListFile = None) -> None:
    """Heads by kind, and where they come from: what answers ``bseq score``, ``demand``, ``next-k`` and ``multitask``.

    Example: `bseq heads`. A plugin that failed is shown with the reason.
    """
    from bseq_behaviour.contract.registry import head_manager

    table, infos = Table("plugin", "distribution", "gives"), head_manager().infos()
    for info in infos:
        made = f"{info.distribution} {info.version}".strip()
        gives = "\n".join(f"{kind}: {', '.join(names)}" for kind, names in info.parts.items() if names)
        if info.error:
            table.row(info.name, made, joined(styled(f"failed: {info.error}", "red"), f"\n{gives}".rstrip()))
        else:
            table.row(info.name, made, gives.strip())
    show([asdict(info) for info in infos], lambda: table, as_json, file)
