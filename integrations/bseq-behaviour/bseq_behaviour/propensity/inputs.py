"""What a head reads of a user at an instant: the frozen vector, counts, or both.

Shape letters: U users, N rows, D columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import pandas as pd

import bseq_plugin as bseq
from bseq_behaviour.propensity.rfm import own_features, rfm_features
from bseq_behaviour.propensity.tasks import Counts, Task
from bseq_behaviour.propensity.vectors import user_vectors

Inputs = Literal["vector", "counts", "both"]


def checked_inputs(inputs: str) -> Inputs:
    """Raises UsageError for another word."""
    if inputs not in ("vector", "counts", "both"):
        raise bseq.UsageError(f"inputs = {inputs!r}; use 'vector', 'counts' or 'both'")
    return cast(Inputs, inputs)


def user_inputs(
    model: bseq.InterestModel,
    log: bseq.Sequences,
    at_us: int,
    asked: list[tuple[Task, Counts]],
    inputs: Inputs = "both",
    values_T: np.ndarray | None = None,
    allow_future_model: bool = False,
) -> np.ndarray:
    """float32 [U, D], from events strictly before ``at_us``; NaN where a count is undefined.

    Counts are those of ``rfm_features``: once for all events, and once for each task that not every event counts for.
    """
    blocks = []
    if inputs != "counts":
        blocks.append(user_vectors(model, log, at_us, allow_future_model).numpy())
    if inputs != "vector":
        tables = [rfm_features(log, at_us, values_T)]
        for task, counts in asked:
            if task.column is not None:
                tables.append(own_features(log, at_us, counts, values_T))
        table = pd.concat(tables, axis=1).to_numpy(np.float64)
        blocks.append(np.sign(table) * np.log1p(np.abs(table)))  # counts and days have long tails
    return np.concatenate(blocks, axis=1).astype(np.float32)


@dataclass(frozen=True)
class Scale:
    """Brings columns to mean 0 and deviation 1, as fitted on other rows; a missing value becomes 0, the mean."""

    mean_D: np.ndarray
    deviation_D: np.ndarray

    @classmethod
    def of(cls, values_ND: np.ndarray) -> Scale:
        """Fit; a column that is the same everywhere, or missing, is left at 0."""
        there_ND = np.isfinite(values_ND)
        n_D = np.maximum(there_ND.sum(0), 1)
        mean_D = np.where(there_ND, values_ND, 0).sum(0, dtype=np.float64) / n_D
        deviation_D = np.sqrt((np.where(there_ND, values_ND - mean_D, 0) ** 2).sum(0) / n_D)
        return cls(mean_D.astype(np.float32), np.where(deviation_D > 1e-6, deviation_D, 1).astype(np.float32))

    def __call__(self, values_ND: np.ndarray) -> np.ndarray:
        """float32, same shape."""
        scaled: np.ndarray = np.nan_to_num((values_ND - self.mean_D) / self.deviation_D, posinf=0, neginf=0)
        return scaled.astype(np.float32)
