"""Histories for a loader of your own: of a table's rows, each as of its own time, or of all users, batch by batch."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from torch.utils.data import IterableDataset, get_worker_info
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from bseq_plugin.data.batches import ORDER_STREAM, history_features
from bseq_plugin.data.partitions import PartitionedSequences
from bseq_plugin.errors import SchemaError, UsageError
from bseq_plugin.events.events import DAY_US, EARLIEST_US
from bseq_plugin.events.ids import ids_like, require_kind
from bseq_plugin.events.sequences import Sequences, places_of_runs
from bseq_plugin.events.vocabulary import Vocabulary
from bseq_plugin.recipe.recipe import Recipe
from bseq_plugin.schema.grid import first_at_or_after


def history_features_at(sequences: Sequences, users: ArrayLike, at_us: ArrayLike, recipe: Recipe) -> KeyedJaggedTensor:
    """Return ``history_features`` of B rows: of ``users[row]`` the latest events strictly before ``at_us[row]``.

    An event that arrived (``created``) after ``at_us`` is not read either. Users may stand in several rows, in any
    order; an unknown one has no events. What is looked up is kept with ``sequences``: call it batch after batch.

    Args:
        users: [B], ids as in ``sequences.user_ids``.
        at_us: int64 [B], or one for all, in microseconds UTC.

    Raises:
        SchemaError: ids of another kind, times in another unit, or a log that is not in order or has no times.
        ValueError: the sequences lack what a feature needs.
    """
    return history_features(histories_before(sequences, users, at_us, recipe.encoder.max_length), recipe)


def histories_before(sequences: Sequences, users: ArrayLike, at_us: ArrayLike, max_length: int) -> Sequences:
    """Return one history a row; see ``history_features_at``."""
    asked = pd.Index(ids_like(users, sequences.user_ids, "users"))
    at_R = _instants(at_us, len(asked))
    starts_R, ends_R = spans_before(sequences, asked, at_R)
    late_R, known_T = arrived(sequences, starts_R, ends_R, at_R)
    latest_R = np.maximum(starts_R, ends_R - max_length)
    latest_R[late_R] = starts_R[late_R]  # what was late makes room for an older event
    rows = replace(sequences, user_ids=asked.to_numpy()).slices(np.arange(len(asked)), latest_R, ends_R)
    keep = np.ones(rows.n_events, bool)
    keep[places_of_runs(rows.offsets[:-1][late_R], rows.offsets[1:][late_R])] = known_T
    return rows.where(keep).latest(max_length)


def spans_before(sequences: Sequences, users: pd.Index, at_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return int64 [R], [R]: from where to where of the flat arrays each user's events strictly before ``at_R`` stand.

    A user that the log does not know has none. Raises SchemaError for users of another kind, and for a log without
    times, or that is not in order.
    """
    require_times(sequences.timestamps is not None)
    known = sequences.known_users
    require_kind(users, sequences.user_ids, "user_id")
    place_R = known.get_indexer(users)
    found_R = np.flatnonzero(place_R >= 0)
    starts_R, ends_R = np.zeros((2, len(users)), np.int64)
    starts_R[found_R] = sequences.offsets[place_R[found_R]]
    ends_R[found_R] = sequences.offsets[place_R[found_R] + 1]
    return starts_R, first_at_or_after(np.asarray(sequences.timestamps), starts_R, ends_R, at_R)


def arrived(
    sequences: Sequences, starts_R: np.ndarray, ends_R: np.ndarray, at_R: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Tell which events of ``spans_before`` were known at ``at_R``: those with ``created`` no later.

    Returns int64 [L], the rows with an event that was late, and bool [T], for the events of these rows one after the
    other whether each was known. Of all other rows every event was.
    """
    if sequences.created is None or not sequences.n_events:
        return np.empty(0, np.int64), np.empty(0, bool)
    newest_R = sequences.latest_created[np.maximum(ends_R - 1, 0)]
    late_R = np.flatnonzero((ends_R > starts_R) & (newest_R > at_R))
    starts_L, ends_L = starts_R[late_R], ends_R[late_R]
    created_T = sequences.created[places_of_runs(starts_L, ends_L)]
    return late_R, created_T <= np.repeat(at_R[late_R], ends_L - starts_L)


def require_times(has_times: bool) -> None:
    """Raise SchemaError for a log that tells only the order of events."""
    if not has_times:
        raise SchemaError(
            "these events have no times, so what came before an instant is unknown; give events with times"
        )


def _instants(at_us: ArrayLike, n_rows: int) -> np.ndarray:
    at = np.asarray(at_us)
    if at.dtype.kind != "i" or at.shape not in ((), (n_rows,)):
        raise SchemaError(f"at_us is {at.dtype} {at.shape}; give microseconds UTC as int64 [{n_rows}], or one for all")
    if at.size and not EARLIEST_US <= at.min() <= at.max() <= time.time() * 1e6 + DAY_US:
        raise SchemaError(f"at_us reaches from {at.min()} to {at.max()}, before 1990 or ahead of now: are they in us?")
    return np.broadcast_to(at.astype(np.int64), n_rows)


class HistoryStream(IterableDataset[tuple[np.ndarray, KeyedJaggedTensor]]):
    """All users' latest events, in batches ``(user_ids [B], history_features)``; for ``DataLoader(batch_size=None)``.

    Ranks, and the workers of each, have contiguous shares of the users, and equally many batches of 1 to
    ``batch_users``: who would get nobody repeats one. The order is that of the log; with a ``seed`` row groups and the
    users of each, or all users of ``Sequences``, are shuffled by (seed, ``epoch``), an attribute to set. One row group
    is held in memory.

    Args:
        vocabulary: the encoder's; ``PartitionedSequences`` need it.
        at_us: only events strictly before; see ``history_features_at``.
    """

    def __init__(
        self,
        sequences: Sequences | PartitionedSequences,
        recipe: Recipe,
        batch_users: int,
        *,
        vocabulary: Vocabulary | None = None,
        at_us: int | None = None,
        seed: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_users < 1 or not 0 <= rank < world_size:
            raise UsageError(f"batch_users = {batch_users}, rank {rank} of {world_size}; 1 or more, 0 <= rank < size")
        if isinstance(sequences, PartitionedSequences) and vocabulary is None:
            raise UsageError("PartitionedSequences hold ids; give the vocabulary whose rows the encoder reads")
        self.log: Any = sequences
        self.recipe, self.batch_users, self.vocabulary, self.at_us = recipe, batch_users, vocabulary, at_us
        self.seed, self.epoch, self.rank, self.world_size = seed, 0, rank, world_size
        self._blocks = [(sequences.n_users, 0, 0)] if isinstance(sequences, Sequences) else _row_groups(sequences)

    def __iter__(self) -> Iterator[tuple[np.ndarray, KeyedJaggedTensor]]:
        """Yield this rank's batches of ``epoch``, or this worker's part of them."""
        worker, length = get_worker_info(), self.recipe.encoder.max_length
        n_workers, number = (1, 0) if worker is None else (worker.num_workers, worker.id)
        shard, n_shards = self.rank * n_workers + number, self.world_size * n_workers
        n_users = sum(n for n, _, _ in self._blocks)
        first, last = shard * n_users // n_shards, (shard + 1) * n_users // n_shards
        steps = -(-n_users // (n_shards * self.batch_users))
        bounds = [first + step * (last - first) // max(steps, 1) for step in range(steps + 1)]
        for part in self._users([(start, max(end, start + 1)) for start, end in pairwise(bounds)]):
            cut = part.latest(length)
            if self.at_us is not None:
                cut = histories_before(part, part.user_ids, self.at_us, length)
            yield cut.user_ids, history_features(cut, self.recipe)

    def _users(self, spans: list[tuple[int, int]]) -> Iterator[Sequences]:
        """Yield the users at each span of places of the epoch's order."""
        order = self._order(len(self._blocks), 0)
        bounds = np.cumsum([0, *(self._blocks[number][0] for number in order)]).tolist()
        held = -1
        for start, end in spans:
            parts = []
            while start < end:
                place = bisect_right(bounds, start) - 1
                if place != held:
                    n_users, partition, group = self._blocks[order[place]]
                    held, users, block = place, self._order(n_users, 1 + int(order[place])), self.log
                    if not isinstance(block, Sequences):
                        block = block.read(partition, [group], self.vocabulary)
                stop = min(end, bounds[place + 1])
                parts.append(block.take(users[start - bounds[place] : stop - bounds[place]]))
                start = stop
            yield Sequences.join(parts)

    def _order(self, n: int, number: int) -> np.ndarray:
        if self.seed is None:
            return np.arange(n)
        return np.random.default_rng([self.seed, ORDER_STREAM, self.epoch, number]).permutation(n)


def _row_groups(log: PartitionedSequences) -> list[tuple[int, int, int]]:
    groups = ((number, log.row_group_users(number).tolist()) for number in range(len(log.partitions)))
    return [(n, number, group) for number, users in groups for group, n in enumerate(users) if n]
