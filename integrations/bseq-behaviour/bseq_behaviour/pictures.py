"""Pictures of segments and of an explanation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import bseq_plugin as bseq
from bseq_behaviour.insight.explain import Explanation

N_EVENTS = 25
UP_COLOUR, DOWN_COLOUR, SEGMENT_COLOUR = "#1f6fb4", "#c4572e", "#b9c2cc"


def draw_explanation(explanation: Explanation, names: Mapping[object, str], path: Path) -> None:
    """The events that moved the score most, in the order of time: a bar each, to the right if it pulled the item up.

    Args:
        names: item id -> what people call it; an id without a name stands for itself.

    Raises MissingDependencyError if matplotlib is not installed.
    """
    events = explanation.events.assign(place=np.arange(len(explanation.events)))
    shown = events.loc[events["effect"].abs().nlargest(N_EVENTS).index].sort_values("place")
    figure, panel = _panel(max(2.2, 0.28 * len(shown) + 1.2))
    labels = [_label(row, names) for _, row in shown.iterrows()]
    colours = [UP_COLOUR if effect > 0 else DOWN_COLOUR for effect in shown["effect"]]
    places = np.arange(len(shown))
    panel.barh(places, shown["effect"], color=colours)
    if "attention" in shown:
        largest = shown["attention"].max() or 1.0
        panel.scatter(
            np.zeros(len(shown)), places, s=120 * shown["attention"] / largest, color="#444444", zorder=3,
            label="attention (size)",
        )  # fmt: skip
        panel.legend(fontsize=8, frameon=False, loc="best")
    panel.set_yticks(places, labels)
    panel.invert_yaxis()
    panel.axvline(0, color="#444444", lw=0.8)
    panel.set_xlabel("score lost when the event is left out")
    named = names.get(explanation.candidate, explanation.candidate)
    panel.set_title(f"{named}: {explanation.score:.3f}, without a history {explanation.baseline:.3f}", fontsize=10)
    figure.savefig(path, dpi=130)


def draw_segments(sizes: pd.Series, described: pd.DataFrame, path: Path) -> None:
    """A bar a segment, as many users long, with the names of what is typical of it.

    Args:
        sizes: segment -> number of users.
        described: see ``describe_segments``.

    Raises MissingDependencyError if matplotlib is not installed.
    """
    figure, panel = _panel(max(2.2, 0.5 * len(sizes) + 1.0))
    panel.barh(np.arange(len(sizes)), sizes.to_numpy(), color=SEGMENT_COLOUR)
    for place, segment in enumerate(sizes.index):
        own = described[described["segment"] == segment]
        text = ", ".join(f"{row.name_} {row.lift:.1f}x" for row in own.rename(columns={"name": "name_"}).itertuples())
        panel.text(0, place, f" {text}", va="center", fontsize=8)
    panel.set_yticks(np.arange(len(sizes)), [f"segment {segment}" for segment in sizes.index])
    panel.invert_yaxis()
    panel.set_xlabel("users; 2.0x: twice as much as the crowd")
    figure.savefig(path, dpi=130)


def _panel(height: float) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise bseq.MissingDependencyError("pictures need matplotlib: pip install 'bseq-plugin[report]'") from error
    figure = Figure(figsize=(8.5, height), layout="constrained")  # no global state, no display
    panel = figure.subplots()
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=8)
    return figure, panel


def _label(row: pd.Series, names: Mapping[object, str]) -> str:
    item = row["item_id"]
    name = "an item not in the catalogue" if item is None else str(names.get(item, item))
    return f"{name}, {row['timestamp']:%Y-%m-%d}" if "timestamp" in row else name
