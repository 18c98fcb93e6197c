"""AUROC and average precision, the mean over tasks, with intervals over households.

Shape letters: U households, K tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from bseq_behaviour.propensity.curves import average_precision
from scipy.stats import rankdata

N_RESAMPLES = 300


@dataclass(frozen=True)
class Scored:
    """What a ranker says of each household and task, and the truth."""

    labels_UK: np.ndarray
    scores_UK: np.ndarray

    def take(self, households: np.ndarray) -> Scored:
        """Those at these places, repeats allowed."""
        return Scored(self.labels_UK[households], self.scores_UK[households])

    def auroc(self) -> float:
        """Mean over the tasks that have both answers."""
        n_yes_K = self.labels_UK.sum(0)
        n_no_K = len(self.labels_UK) - n_yes_K
        sums_K = (rankdata(self.scores_UK, axis=0) * self.labels_UK).sum(0)
        both_K = (n_yes_K > 0) & (n_no_K > 0)
        areas_K = (sums_K - n_yes_K * (n_yes_K + 1) / 2)[both_K] / (n_yes_K * n_no_K)[both_K]
        return float(areas_K.mean())

    def average_precision(self) -> float:
        """Mean over the tasks."""
        columns = range(self.labels_UK.shape[1])
        return float(np.mean([average_precision(self.labels_UK[:, k], self.scores_UK[:, k]) for k in columns]))


def resampled(rankers: dict[str, list[Scored]], seed: int = 0) -> dict[str, np.ndarray]:
    """Of each ranker float [N_RESAMPLES], the AUROC, mean over seeds, of households drawn with repeats; paired."""
    n_users = len(next(iter(rankers.values()))[0].labels_UK)
    random = np.random.default_rng(seed)
    draws = {name: np.empty(N_RESAMPLES) for name in rankers}
    for draw in range(N_RESAMPLES):
        households = random.integers(0, n_users, n_users)
        for name, seeds in rankers.items():
            draws[name][draw] = np.mean([one.take(households).auroc() for one in seeds])
    return draws


def summary(rankers: dict[str, list[Scored]], bases: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Mean and deviation over seeds, with 95 % intervals over households; and under ``over`` the gain against each of
    ``bases``, outside noise if its interval is above zero and the worst seed above the best of the base.
    """
    draws, found = resampled(rankers), {}
    areas = {name: [one.auroc() for one in seeds] for name, seeds in rankers.items()}
    for name, seeds in rankers.items():
        of_seeds = areas[name]
        found[name] = {
            "auroc": float(np.mean(of_seeds)),
            "auroc_sd": float(np.std(of_seeds, ddof=1)) if len(seeds) > 1 else 0.0,
            "auroc_interval": _interval(draws[name]),
            "average_precision": float(np.mean([one.average_precision() for one in seeds])),
            "over": {},
        }
        for base in bases:
            interval = _interval(draws[name] - draws[base])
            found[name]["over"][base] = {
                "gain": float(np.mean(of_seeds) - np.mean(areas[base])),
                "interval": interval,
                "outside_noise": bool(interval[0] > 0 and min(of_seeds) > max(areas[base])),
            }
    return found


def _interval(values: np.ndarray) -> list[float]:
    return [float(x) for x in np.quantile(values, [0.025, 0.975])]
