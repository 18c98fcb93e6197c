"""The blend: interest scores with what the user has done before and with what candidate sources find.

One formula, computed by the same functions where weights are fitted, where a benchmark measures, and where a store
serves:

    count(h) = sum of 0.5 ** (age / h) over the user's events of the item
    score = interest * (interest score) + history * log1p(count(half_life)) + recent * log1p(count(recent_half_life))
            + sum over sources of weight * (score of the source, 0 where it did not find the item)

What is bought again and again and what was bought just now are two habits: one half life can't tell them apart.

Shape letters: B users, P distinct (user, item) pairs of their histories.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from bseq_plugin.errors import UsageError
from bseq_plugin.events.events import DAY_US
from bseq_plugin.events.sequences import Sequences

Scores = TypeVar("Scores", np.ndarray, Tensor)
FILE = "blend.json"  # in a run directory and in a store version


@dataclass(frozen=True)
class Blend:
    """How much each part of a score counts (0 or more) and in how many days an event loses half of its weight.

    ``bseq.fit_blend`` learns one from held-out events, and ``bseq.publish(blend=)`` takes it into a store. Without one
    the interest stands alone: what a history is worth depends on the scale of the scores.

    Attributes:
        sources: candidate source by name -> weight; a source that is not named, or has weight 0, is not asked.
        reached: metric -> what the blend had on the events it was fitted on, empty for weights by hand; it is told to
            people, not saved and not compared.
    """

    interest: float = 1.0
    history: float = 0.0
    half_life_days: float = 60.0
    recent: float = 0.0
    recent_half_life_days: float = 15.0
    sources: Mapping[str, float] = field(default_factory=dict)
    reached: Mapping[str, float] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        numbers = self.weights()
        if not isinstance(numbers.pop("sources"), dict):
            raise UsageError(f"blend weight sources = {self.sources!r}; give {{name of a candidate source: weight}}")
        for name, value in [*numbers.items(), *self.sources.items()]:
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
                raise UsageError(f"blend weight {name} = {value!r}; give a number of 0 or more")
        if not (self.half_life_days and self.recent_half_life_days):
            raise UsageError("a blend weight half_life_days = 0; give a positive number of days")

    @property
    def asked(self) -> dict[str, float]:
        """Return the sources that count for something, with their weights."""
        return {name: weight for name, weight in self.sources.items() if weight > 0}

    def weights(self) -> dict[str, Any]:
        """Return everything that decides on a score, JSON-ready."""
        return {name: value for name, value in asdict(self).items() if name != "reached"}

    def save(self, path: str | Path) -> None:
        """Write the weights as JSON."""
        Path(path).write_text(json.dumps(self.weights(), indent=1), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Blend:
        """Read what ``save`` wrote. Raises UsageError if the file is missing, or has other keys or values."""
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"{str(path)!r} is no blend: {error}; write it with Blend.save") from error
        known = {one.name for one in fields(cls)} - {"reached"}
        if not isinstance(values, dict) or set(values) - known:
            raise UsageError(f"{str(path)!r} has other keys than {sorted(known)}; write it with Blend.save")
        return cls(**values)

    @classmethod
    def of_run(cls, run: Path) -> Blend | None:
        """Return the blend that was saved in a run directory, None if there is none."""
        return cls.load(run / FILE) if (run / FILE).is_file() else None


@dataclass(frozen=True)
class HistoryScores:
    """``log1p(count)`` of each distinct (user, item) of some histories, ascending by user, then item.

    Attributes:
        users_P: int64, places 0..B-1.
        items_P: int64, vocabulary rows (1..V: unknown items have no score).
        scores_P: float32, more than 0.
    """

    users_P: np.ndarray
    items_P: np.ndarray
    scores_P: np.ndarray


def history_scores(histories: Sequences, at_us: int | np.ndarray | None, half_life_days: float) -> HistoryScores:
    """Return ``log1p`` of each item's decayed number of events.

    Args:
        histories: B users; events at or after ``at_us`` must have been cut off (``Sequences.between``).
        at_us: the request time, from which ages count (microseconds, UTC), one for all or int64 [B]. Nothing decays if
            it is None or the log has no times.
    """
    known = histories.known()
    n_rows = int(known.items.max(initial=0)) + 1
    pairs, place_T = np.unique(known.user_index * n_rows + known.items, return_inverse=True)
    if known.timestamps is None or at_us is None:
        weights_T = np.ones(known.n_events)
    else:
        at_T = np.broadcast_to(at_us, known.n_users)[known.user_index]
        # an event after ``at`` would weigh more than one; the caller cuts, this only keeps the sum bounded
        weights_T = 0.5 ** (np.maximum(at_T - known.timestamps, 0) / (half_life_days * DAY_US))
    sums_P = np.bincount(place_T, weights=weights_T, minlength=len(pairs))
    return HistoryScores(pairs // n_rows, pairs % n_rows, np.log1p(sums_P).astype(np.float32))


def blend_scores(
    interest_scores: Scores,
    history_scores: Scores | float,
    blend: Blend,
    recent_scores: Scores | float = 0.0,
    source_scores: Mapping[str, Scores] | None = None,
) -> Scores:
    """Return the blended score, element by element.

    Args:
        history_scores: those of ``history_scores`` at ``blend.half_life_days``; 0 where the item is not in the history.
        recent_scores: the same at ``blend.recent_half_life_days``.
        source_scores: of each candidate source; 0 where it did not find the item.
    """
    blended = interest_scores * blend.interest + history_scores * blend.history
    blended = blended + recent_scores * blend.recent
    for name, scores in (source_scores or {}).items():
        blended = blended + scores * blend.sources.get(name, 0.0)
    return blended
