"""Models and baselines side by side, with their intervals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bseq_plugin.errors import MissingDependencyError
from bseq_plugin.evaluation.report import Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MODEL_COLOUR, BASELINE_COLOUR = "#1f6fb4", "#b9c2cc"


def draw_comparisons(comparisons: Mapping[str, Comparison], metric: str, path: str | Path) -> None:
    """Write a PNG with one panel for each comparison: a bar a ranker, best on top, with its 95 % interval.

    Raises MissingDependencyError if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("pictures need matplotlib: pip install 'bseq-plugin[report]'") from error
    figure = Figure(figsize=(5.2 * len(comparisons), 3.8), layout="constrained")  # no global state, no display
    panels = figure.subplots(1, len(comparisons), squeeze=False)[0]
    for panel, (title, comparison) in zip(panels, comparisons.items(), strict=True):
        _panel(panel, comparison, metric)
        panel.set_title(title, fontsize=11)
    figure.savefig(path, dpi=130)


def _panel(panel: Axes, comparison: Comparison, metric: str) -> None:
    names = sorted(comparison.values, key=lambda name: comparison.mean(name, metric))
    means = np.array([comparison.mean(name, metric) for name in names])
    lows, highs = np.array([comparison.intervals[name][metric] for name in names]).T
    colours = [MODEL_COLOUR if name in comparison.models else BASELINE_COLOUR for name in names]
    around, line = [means - lows, highs - means], {"lw": 1, "capsize": 2, "ecolor": "#444444"}
    panel.barh(names, means, xerr=around, color=colours, error_kw=line)
    for place, (mean, high) in enumerate(zip(means, highs, strict=True)):
        panel.text(high, place, f"  {mean:.4f}", va="center", fontsize=8)
    panel.set_xlim(0, 1.2 * highs.max())
    panel.set_xlabel(
        f"{metric}, {comparison.n_users:,} users, seen items {'masked' if comparison.seen == 'mask' else 'kept'}"
    )
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=9)
