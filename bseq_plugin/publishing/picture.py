"""Recall against latency: one line an index, one point an effort."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bseq_plugin.errors import MissingDependencyError
from bseq_plugin.publishing.index_report import IndexReport
from bseq_plugin.publishing.measure import Measured

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#1f6fb4", "#d9822b", "#3a8f5c", "#8e5ea2", "#b9c2cc")
TITLES = {"1": "one query", "256": "a batch of 256, per query"}


def draw_pareto(report: IndexReport, target: float, path: Path) -> None:
    """Draw a panel a batch size: p50 in milliseconds a query (log) against recall@k; the target is a line. PNG or SVG
    by the ending of ``path``. Raises MissingDependencyError without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("pictures need matplotlib: pip install 'bseq-plugin[report]'") from error
    figure = Figure(figsize=(10.4, 4.0), layout="constrained")
    for panel, (batch, title) in zip(figure.subplots(1, 2), TITLES.items(), strict=True):
        _panel(panel, report, batch, target)
        panel.set_title(title, fontsize=11)
    figure.suptitle(f"{report.n_items:,} vectors of width {report.dim}, {report.n_queries:,} interests", fontsize=10)
    figure.savefig(path, dpi=130)


def kinds(rows: tuple[Measured, ...]) -> dict[str, list[Measured]]:
    """Return the rows by kind, that is by what was built."""
    rows_of_kind: dict[str, list[Measured]] = {}
    for row in rows:
        rows_of_kind.setdefault(str(row.options.get("factory", row.index)), []).append(row)
    return rows_of_kind


def _panel(panel: Axes, report: IndexReport, batch: str, target: float) -> None:
    for colour, (name, rows) in zip(COLOURS * len(report.rows), kinds(report.rows).items(), strict=False):
        times = [row.latency_ms[batch]["p50"] / int(batch) for row in rows]
        recalls, label = [row.recall for row in rows], f"{name}, {rows[0].bytes_per_vector:.0f} B a vector"
        panel.plot(times, recalls, "o-", ms=4, color=colour, label=label)
    panel.axhline(target, color="#444444", lw=0.8, ls="--")
    panel.set_xscale("log")
    panel.set_xlabel("p50, milliseconds a query")
    panel.set_ylabel(f"recall@{report.k}")
    panel.legend(fontsize=8, frameon=False, loc="lower right")
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=9)
