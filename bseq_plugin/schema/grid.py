"""Unit vectors on a grid, whose inner products are exact: the same bytes for one row and for a million.

Shape letters: V catalogue items, D width, T history events of all requests, R requests.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# Unit vectors are rounded to multiples of 2^-24, all of which float32 holds. Products of two are then multiples of
# 2^-48 and their sums stay below 2^5, so a dot product in float64 is exact: in any order, in any BLAS kernel, in any
# block. That is why a feature has the same bytes for one row online and for a million rows offline.
GRID = 2.0**-24
SUM_BITS = 53 - 24  # of weights whose products with grid vectors are to be added exactly


def products(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Multiply batches of matrices as ``np.matmul``, by torch: two libraries' threads would wait for each other's
    cores.
    """
    return torch.matmul(torch.from_numpy(left), torch.from_numpy(right)).numpy()


def on_grid(x: Tensor) -> Tensor:
    """Return float64, every element rounded to the nearest multiple of ``GRID``; for elements in [-1, 1]."""
    return torch.round(x.double() / GRID) * GRID


def unit_vectors(x: Tensor) -> Tensor:
    """Return float64 on the grid, ``x`` [..., D] over its L2 norm; all of a vector is NaN if its norm is 0 or not
    finite.
    """
    wide = x.to(torch.float64, copy=True)
    norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    norm = torch.where(torch.isfinite(norm) & (norm > 0), norm, torch.nan)
    # in place: these are the largest tensors of a block, and the time goes into memory
    return wide.mul_(1 / (norm * GRID)).round_().mul_(GRID)


def unit_table(vectors_VD: Tensor) -> Tensor:
    """Return float32 [V + 1, D] on the grid, the L2-normalised item vectors; NaN in row 0 and for zero vectors."""
    units_VD = torch.empty(vectors_VD.shape, dtype=torch.float32)
    for start in range(0, len(units_VD), 1 << 16):  # in pieces, for the sake of memory
        units_VD[start : start + (1 << 16)] = unit_vectors(vectors_VD[start : start + (1 << 16)])
    units_VD[0] = torch.nan
    return units_VD


def rows_of(table: Tensor, rows: Tensor) -> Tensor:
    """Return ``table[rows]`` for int64 ``rows`` of any shape, several times as fast as torch's own indexing."""
    return table.index_select(0, rows.reshape(-1)).view(*rows.shape, *table.shape[1:])


def first_at_or_after(times_T: np.ndarray, low_R: np.ndarray, high_R: np.ndarray, at_R: np.ndarray) -> np.ndarray:
    """Return int64 [R], the first place in [low, high) whose time is >= at, else high: one binary search for all
    requests.
    """
    while (unsettled_R := low_R < high_R).any():
        middle_R = (low_R + high_R) // 2
        earlier_R = unsettled_R & (times_T[np.minimum(middle_R, len(times_T) - 1)] < at_R)
        low_R = np.where(earlier_R, middle_R + 1, low_R)
        high_R = np.where(unsettled_R & ~earlier_R, middle_R, high_R)
    return high_R
