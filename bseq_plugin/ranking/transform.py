"""What a network can eat: features on one scale, missing ones at zero, and numbers that are names as sparse ids.

Fitted once, on the rows that a ranker is trained on, and kept with the specification, so that serving sees the keys and
numbers of training.

Shape letters: N rows, W width of a feature.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, StrictInt

from bseq_plugin.errors import UsageError

Scores = Literal["standard", "quantile"]
LONG_TAIL = 10.0  # a feature with larger values is measured by its logarithm: seconds, events, places
N_QUANTILES = 101
FEWEST = 2  # rows to fit on


class DenseColumn(BaseModel):
    """One fitted feature of numbers.

    Attributes:
        log: whether it is sign(x) * log(1 + |x|) that is scaled.
        mean, scale: of each component, W numbers.
        quantiles: for ``scores = "quantile"``, ascending; else empty.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    log: bool
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    quantiles: tuple[float, ...] = ()

    @classmethod
    def fit(cls, values_NW: np.ndarray, scores: Scores) -> DenseColumn:
        """Fit to the values that are there, float64 [N, W]."""
        log = bool(np.nanmax(np.abs(values_NW), initial=0.0) > LONG_TAIL)
        values_NW = _log(values_NW) if log else values_NW
        there = ~np.isnan(values_NW)
        n_W = np.maximum(there.sum(0), 1)
        mean_W = np.where(there, values_NW, 0.0).sum(0) / n_W
        scale_W = np.sqrt((np.where(there, values_NW - mean_W, 0.0) ** 2).sum(0) / n_W)
        scale_W[scale_W < 1e-6 * np.maximum(1.0, np.abs(mean_W))] = 1.0  # a constant says nothing
        quantiles: tuple[float, ...] = ()
        if scores == "quantile" and values_NW.shape[1] == 1 and there.any():
            quantiles = tuple(np.quantile(values_NW[there], np.linspace(0, 1, N_QUANTILES)).tolist())
        return cls(log=log, mean=tuple(mean_W.tolist()), scale=tuple(scale_W.tolist()), quantiles=quantiles)

    def apply(self, values_NW: np.ndarray, clip: float) -> np.ndarray:
        """Return float32 [N, W] within -clip to clip, 0 for a missing value."""
        values_NW = _log(values_NW.astype(np.float64)) if self.log else values_NW.astype(np.float64)
        if self.quantiles:
            scores_NW = _ranks(values_NW, np.array(self.quantiles))
        else:
            scores_NW = (values_NW - np.array(self.mean)) / np.array(self.scale)
        return np.asarray(np.clip(np.nan_to_num(scores_NW, nan=0.0), -clip, clip), np.float32)


class FeatureTransform(BaseModel):
    """A fitted transform of ranking features; ``FeatureSpec.fitted`` makes it.

    Attributes:
        dense: feature -> how its numbers are scaled, in the order of the keys.
        categories: feature -> the names that it had, ascending, int if it is int64 and else float; the k-th one is
            sparse id k + 1, others are 0.
        clip: dense values end there, in standard deviations (quantile scores lie in -1 to 1 anyway).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dense: dict[str, DenseColumn]
    categories: dict[str, tuple[StrictInt, ...] | tuple[float, ...]]
    clip: float = 5.0

    @property
    def cardinalities(self) -> dict[str, int]:
        """Rows that a table of each sparse key needs: its categories, and row 0 for all others."""
        return {name: len(values) + 1 for name, values in self.categories.items()}

    @classmethod
    def fit(
        cls, columns: dict[str, np.ndarray], categorical: Iterable[str], scores: Scores, clip: float
    ) -> FeatureTransform:
        """Fit to columns [N] or [N, W], float32, or int64 for names.

        Raises UsageError for fewer than two rows, unknown ``scores``, a useless ``clip``, or an infinite value.
        """
        if scores not in get_args(Scores):
            raise UsageError(f"scores = {scores!r}; there are: {list(get_args(Scores))}")
        n_rows = len(next(iter(columns.values()), ()))
        if n_rows < FEWEST:
            raise UsageError(f"a transform is fitted to the rows a ranker is trained on; {n_rows} rows are too few")
        if not 0 < clip < np.inf:
            raise UsageError(f"clip = {clip}; give a number of standard deviations above 0, for example 5")
        _refuse_infinite(columns)
        chosen = set(categorical)
        dense = {name: DenseColumn.fit(_wide(values), scores) for name, values in columns.items() if name not in chosen}
        categories = {
            name: tuple(np.unique(values[~missing(values)]).tolist())
            for name, values in columns.items()
            if name in chosen
        }
        return cls(dense=dense, categories=categories, clip=clip)

    def numbers(self, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return float32 [N, W] of each dense feature; raises UsageError for one that is not there or is wider."""
        numbers = {}
        for name, fitted in self.dense.items():
            values_NW = _wide(self._column(columns, name))
            if values_NW.shape[1] != len(fitted.mean):
                raise UsageError(
                    f"feature {name!r} has width {values_NW.shape[1]}, the transform was fitted to "
                    f"{len(fitted.mean)}; fit it anew, or use the store it was fitted with"
                )
            numbers[name] = fitted.apply(values_NW, self.clip)
        return numbers

    def ids(self, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return int64 [N, W] of each sparse feature: 0 for a missing value, or one that was never seen.

        Raises UsageError for a feature that is not there, or of whole numbers where the fit had others.
        """
        ids = {}
        for name, known in self.categories.items():
            column = self._column(columns, name)
            values_NW, known_C = column.reshape(len(column), -1), np.array(known, column.dtype)
            if not known:
                ids[name] = np.zeros(values_NW.shape, np.int64)
                continue
            if isinstance(known[0], int) != (column.dtype.kind == "i"):  # one of them may be rounded
                fitted = "int64" if isinstance(known[0], int) else "float32"
                raise UsageError(
                    f"feature {name!r} is {column.dtype}, the transform was fitted to {fitted}; fit it anew"
                )
            place_NW = np.searchsorted(known_C, values_NW)
            found_NW = known_C[np.minimum(place_NW, len(known_C) - 1)] == values_NW
            ids[name] = np.where(found_NW, place_NW + 1, 0).astype(np.int64)
        return ids

    @staticmethod
    def _column(columns: dict[str, np.ndarray], name: str) -> np.ndarray:
        if name not in columns:
            raise UsageError(
                f"the transform was fitted to feature {name!r}, which is not among these: {list(columns)}; make them "
                "with the specification it was fitted with"
            )
        return columns[name]


def missing(values: np.ndarray) -> np.ndarray:
    """Return bool of the same shape, where a feature has no value: NaN, and -1 among names in int64."""
    return np.asarray(values < 0 if values.dtype.kind == "i" else np.isnan(values))


def _refuse_infinite(columns: dict[str, np.ndarray]) -> None:
    for name, values in columns.items():
        places = np.argwhere(np.isinf(values))
        if len(places):
            row = int(places[0, 0])
            raise UsageError(
                f"feature {name!r} is {values[tuple(places[0])]} in row {row} (counted from 0), and a transform fitted "
                "to it would say 0 of every row: mend it, or make it NaN, which is a missing value"
            )


def _wide(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, np.float64).reshape(len(values), -1)


def _log(values: np.ndarray) -> np.ndarray:
    logs: np.ndarray = np.sign(values) * np.log1p(np.abs(values))
    return logs


def _ranks(values_N1: np.ndarray, quantiles_Q: np.ndarray) -> np.ndarray:
    """Return -1 to 1, the mean of the first and the last place that a value could have among the quantiles."""
    places = np.linspace(-1, 1, len(quantiles_Q))
    left = np.interp(values_N1, quantiles_Q, places)
    right = -np.interp(-values_N1, -quantiles_Q[::-1], places)
    ranks: np.ndarray = (left + right) / 2
    return ranks
