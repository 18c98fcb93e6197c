"""Helpers of candidate sources: the best items of each row of a score matrix."""

from __future__ import annotations

import numpy as np
import torch

from bseq_plugin.data.sparse import Matrix
from bseq_plugin.schema.sources import SourceCandidates


def best_of_rows(matrix: Matrix, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (rows, columns, values) of the ``k`` largest values of each row, best first; of equal ones the lower
    column.
    """
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    order = np.lexsort((matrix.indices, -matrix.data, rows))
    ranks = np.arange(len(order)) - np.asarray(matrix.indptr[:-1])[rows[order]]
    kept = order[ranks < k]
    return rows[kept], matrix.indices[kept].astype(np.int64), matrix.data[kept]


def candidates_of(matrix: Matrix, k: int) -> SourceCandidates:
    """Return the best ``k`` items of each row of [B, V + 1], with scores brought to 0..1 by the row's best."""
    users, items, values = best_of_rows(matrix, k)
    best = np.zeros(matrix.shape[0])
    np.maximum.at(best, users, values)
    kept = (values > 0) & (items > 0)
    users, items, values = users[kept], items[kept], values[kept]
    return SourceCandidates(
        torch.from_numpy(users.astype(np.int64)),
        torch.from_numpy(items),
        torch.from_numpy((values / best[users]).astype(np.float32)),
    )
