"""Histories as sparse matrices: what baselines and candidate sources are computed from.

Shape letters: U users, b users of one block, S steps, T events, V items (columns are vocabulary rows, 0 = unknown).
All matrices are float32 in CSR form.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from bseq_plugin.errors import SchemaError
from bseq_plugin.events.events import DAY_US
from bseq_plugin.events.sequences import Sequences

Matrix = Any  # scipy.sparse.csr_array: its stubs change the type parameters from release to release


def steps(sequences: Sequences) -> np.ndarray:
    """Return int64 [T], the step of each event, 0..S-1, ascending; a step never spans two users.

    Events of one session are one step (a basket has no order worth learning); without sessions, events of the same
    instant; in a log that tells only the order, each event.
    """
    marks = sequences.session_ids if sequences.session_ids is not None else sequences.timestamps
    if marks is None:
        return np.arange(sequences.n_events)
    users = sequences.user_index
    begins = np.ones(sequences.n_events, bool)
    begins[1:] = (marks[1:] != marks[:-1]) | (users[1:] != users[:-1])
    return np.cumsum(begins) - 1


def counted_from(training: Sequences, at_us: int | None) -> int | None:
    """Return when ages are counted from: ``at_us``, else just after the newest event; None without times."""
    if training.newest_us is None:
        return None
    return training.newest_us + 1 if at_us is None else at_us


def item_counts(training: Sequences, n_items: int, days: float | None = None, at_us: int | None = None) -> np.ndarray:
    """Return float64 [V + 1], events of each item (of the last ``days`` before ``at_us``); 0 for the unknown item.

    Raises SchemaError if ``days`` is given and the log has no times.
    """
    if days is not None and training.timestamps is None:
        raise SchemaError(f"the log has no times, so there are no last {days:g} days; use days=None")
    at_us = counted_from(training, at_us)
    if days is not None and at_us is not None:
        training = training.between(at_us - round(days * DAY_US), at_us)
    counts = np.bincount(training.items, minlength=n_items + 1).astype(np.float64)
    counts[0] = 0
    return counts


def count_matrix(
    rows: np.ndarray, items: np.ndarray, shape: tuple[int, int], weights: np.ndarray | None = None
) -> Matrix:
    """Return [rows, V + 1], sums of ``weights`` (default 1) over equal (row, item) pairs."""
    values = np.ones(len(items), np.float32) if weights is None else weights.astype(np.float32)
    # half the memory traffic of int64; scipy widens the indices of a product that needs it
    kind = np.int32 if max(*shape, len(items)) <= np.iinfo(np.int32).max else np.int64
    return sparse.csr_array((values, (rows.astype(kind), items.astype(kind))), shape=shape)


def step_matrix(sequences: Sequences, n_items: int) -> Matrix:
    """Return [S, V + 1], 1 where a step holds an item."""
    step = steps(sequences)
    held = count_matrix(step, sequences.items, (int(step[-1]) + 1 if len(step) else 0, n_items + 1))
    held.data[:] = 1
    return held


def step_users(sequences: Sequences) -> np.ndarray:
    """Return int64 [S], the user (0..U-1) of each step."""
    return sequences.user_index[np.flatnonzero(np.diff(steps(sequences), prepend=-1))]


def transition_graph(
    sequences: Sequences,
    n_items: int,
    distance_weights: tuple[float, ...] = (1.0, 0.5, 0.33),
    backwards: float = 0.9,
    popularity_power: float = 0.3,
) -> Matrix:
    """Return [V + 1, V + 1]: edges join the items of steps at distance 1, 2, 3 with weight 1, .5, .33, and backwards
    times ``backwards``. A row is divided by the root of its sum, a column by popularity ** ``popularity_power``.

    ``sequences``: known items only (``Sequences.known``).
    """
    held, users_S = step_matrix(sequences, n_items), step_users(sequences)
    edges = count_matrix(np.empty(0, int), np.empty(0, int), (len(users_S), len(users_S)))
    for distance, weight in enumerate(distance_weights, 1):
        first = np.flatnonzero(users_S[:-distance] == users_S[distance:])
        edges = edges + count_matrix(first, first + distance, edges.shape, np.full(len(first), weight))
    graph = held.T.tocsr() @ ((edges + edges.T.tocsr() * np.float32(backwards)) @ held)
    drop_diagonal(graph)
    sums = np.asarray(graph.sum(axis=1)).ravel()
    counts = np.maximum(np.bincount(sequences.items, minlength=n_items + 1).astype(np.float64), 1)
    scale_rows(graph, 1 / np.sqrt(np.maximum(sums, 1e-9)))
    scale_columns(graph, counts**-popularity_power)
    return graph


def history_matrix(
    sequences: Sequences, n_items: int, half_life_days: float | None = None, until_us: int | None = None
) -> Matrix:
    """Return [U, V + 1], the number of times each user had each item.

    With a half life an event counts ``2 ** -(age / half life)``, its age taken at ``until_us``; a log without times
    counts plainly.
    """
    weights = None
    if half_life_days is not None and sequences.timestamps is not None and until_us is not None:
        weights = np.exp2((sequences.timestamps - until_us) / (half_life_days * DAY_US))
    return count_matrix(sequences.user_index, sequences.items, (sequences.n_users, n_items + 1), weights)


def recent_matrix(sequences: Sequences, n_items: int, last: int, decay: float) -> Matrix:
    """Return [U, V + 1], weights of the items of each user's last steps: ``decay ** age``, age 0 for the newest."""
    users_S = step_users(sequences)
    n_steps = len(users_S)
    ends_U = np.searchsorted(users_S, np.arange(sequences.n_users), side="right")
    age_S = ends_U[users_S] - 1 - np.arange(n_steps)
    recent = np.flatnonzero(age_S < last)
    weights = count_matrix(users_S[recent], recent, (sequences.n_users, n_steps), decay ** age_S[recent])
    return weights @ step_matrix(sequences, n_items)


def scale_rows(matrix: Matrix, factors: np.ndarray) -> None:
    """Multiply each row by its factor, in place: item-item matrices are the largest thing a baseline holds."""
    matrix.data *= np.repeat(factors.astype(np.float32), np.diff(matrix.indptr))


def scale_columns(matrix: Matrix, factors: np.ndarray) -> None:
    """Multiply each column by its factor, in place."""
    matrix.data *= factors.astype(np.float32)[matrix.indices]


def drop_diagonal(matrix: Matrix) -> None:
    """Set the diagonal to zero, in place: nobody is their own neighbour."""
    rows = np.repeat(np.arange(matrix.shape[0], dtype=matrix.indices.dtype), np.diff(matrix.indptr))
    matrix.data[rows == matrix.indices] = 0
    matrix.eliminate_zeros()


def log1p(matrix: Matrix) -> Matrix:
    """Return a copy with log(1 + x) for each value."""
    return matrix.log1p()


def unit_rows(matrix: Matrix) -> Matrix:
    """Bring each row to Euclidean length 1; an empty row stays empty."""
    lengths = np.sqrt(np.asarray(matrix.power(2).sum(axis=1)).ravel())
    matrix = matrix.copy()
    scale_rows(matrix, 1.0 / np.maximum(lengths, 1e-9))
    return matrix


def stack(parts: list[Matrix]) -> Matrix:
    """Stack blocks of rows, one below the other."""
    return sparse.vstack(parts, format="csr")


def keep_strongest(scores_bN: np.ndarray, k: int) -> Matrix:
    """Return [b, N] with only the k largest values of each row."""
    k = min(k, scores_bN.shape[1])
    if k == 0:
        return sparse.csr_array(scores_bN.shape, dtype=np.float32)
    columns = np.argpartition(scores_bN, -k, axis=1)[:, -k:]
    values = np.take_along_axis(scores_bN, columns, axis=1)
    rows = np.repeat(np.arange(len(scores_bN)), k)
    kept = sparse.csr_array((values.ravel(), (rows, columns.ravel())), shape=scores_bN.shape)
    kept.eliminate_zeros()
    return kept


def best_of_rows(matrix: Matrix, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (rows, columns, values) of the ``k`` largest of each row, best first; of equal ones the lower column."""
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    order = np.lexsort((matrix.indices, -matrix.data, rows))
    ranks = np.arange(len(order)) - np.asarray(matrix.indptr[:-1])[rows[order]]
    kept = order[ranks < k]
    return rows[kept], matrix.indices[kept].astype(np.int64), matrix.data[kept]
