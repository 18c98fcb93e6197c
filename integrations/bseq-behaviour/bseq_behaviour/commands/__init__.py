"""The commands that this package adds to ``bseq``; imports of torch and friends stand inside the commands."""

from __future__ import annotations

import typer

from bseq_behaviour.commands.anomalies import anomalies
from bseq_behaviour.commands.demand import demand
from bseq_behaviour.commands.explain import explain
from bseq_behaviour.commands.heads import heads
from bseq_behaviour.commands.multitask import multitask
from bseq_behaviour.commands.next_k import next_k
from bseq_behaviour.commands.returns import returns
from bseq_behaviour.commands.score import score
from bseq_behaviour.commands.segments import segments

PANEL = "What users will do and are like"


def add(app: typer.Typer) -> None:
    """Add all commands, in a panel of their own."""
    for command in (score, returns, demand, next_k, multitask, segments, anomalies, explain, heads):
        app.command(rich_help_panel=PANEL)(command)
