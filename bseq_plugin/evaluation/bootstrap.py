"""Bootstrap intervals of means; users are the unit that is drawn.

Shape letters: U users, M columns (metrics, rankers, differences), R resamples.
"""

from __future__ import annotations

import numpy as np

from bseq_plugin.errors import UsageError

# draws held at one time; the counts made of them take 8 bytes each
CHUNK_DRAWS = 4_000_000


def bootstrap_intervals(
    values_UM: np.ndarray, n_resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> np.ndarray:
    """Return the percentile interval of the mean of each column; all columns share the drawn users.

    A resample of U users with replacement is a vector of multinomial counts, so that the R means of all columns are
    one matrix product.

    Args:
        values_UM: float [U, M], U >= 1.
        n_resamples: R.
        seed: of the draws; the same seed and shape give the same interval.
        level: of the interval, between 0 and 1.

    Returns:
        float64 [M, 2], low and high.

    Raises:
        UsageError: for no users, no resamples, or a level out of range.

    Source: Efron, Annals of Statistics 1979.
    """
    n_users, _ = values_UM.shape
    if n_users < 1 or n_resamples < 1 or not 0 < level < 1:
        raise UsageError(
            f"{n_users} users, n_resamples = {n_resamples}, level = {level}; give at least one user and one resample, "
            "and a level between 0 and 1"
        )
    generator = np.random.default_rng(seed)
    chunk = max(1, CHUNK_DRAWS // n_users)
    means = []
    for start in range(0, n_resamples, chunk):
        n = min(chunk, n_resamples - start)
        draws = generator.integers(0, n_users, (n, n_users))
        places = draws + np.arange(n)[:, None] * n_users
        counts = np.bincount(places.ravel(), minlength=n * n_users).reshape(n, n_users)
        means.append(counts.astype(np.float64) @ values_UM / n_users)
    tail = (1 - level) / 2
    bounds: np.ndarray = np.quantile(np.concatenate(means), [tail, 1 - tail], axis=0)
    return bounds.T


def bootstrap_interval(
    values_U: np.ndarray, n_resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Return ``bootstrap_intervals`` of one column: (low, high).

    Two rankers are compared by the interval of their difference on the same users, which removes what makes a user
    easy or hard for everybody: two overlapping intervals may still differ surely.
    """
    low, high = bootstrap_intervals(values_U[:, None], n_resamples, seed, level)[0]
    return float(low), float(high)
