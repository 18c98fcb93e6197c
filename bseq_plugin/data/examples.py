"""The objectives: a history predicts the next event everywhere, or after one prefix, or the window that follows.

All give a rank's examples from a global batch of users, as a pure function of the users and a random generator.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bseq_plugin.data.batches import RandomNumbers
from bseq_plugin.errors import SchemaError
from bseq_plugin.events.events import DAY_US
from bseq_plugin.events.sequences import Sequences, places_of_runs
from bseq_plugin.recipe.objective import WindowObjective


@dataclass(frozen=True)
class Examples:
    """Histories with their targets, in the order of the users.

    Attributes:
        histories: B users.
        state_rows: int64 [Q], ascending packed rows whose states predict something.
        target_ids: int64 [S].
        target_state: int64 [S], ascending places in ``state_rows``.
        target_weights: float32 [S], above 0.
        total_weight: of the targets of all ranks together.
        batch_targets: int64, the target ids of all ranks, in any order and with repeats.
        at_us: the instant that separates histories from targets, None if each target has its own.
    """

    histories: Sequences
    state_rows: np.ndarray
    target_ids: np.ndarray
    target_state: np.ndarray
    target_weights: np.ndarray
    total_weight: float
    batch_targets: np.ndarray
    at_us: int | None = None


def share(users: np.ndarray, rank: int, world_size: int) -> tuple[np.ndarray, bool]:
    """Return (the rank's part of a global batch, True), or (some user, False) for a rank that gets none.

    Every rank takes part in a step's look-ups, so none may be without a user; but that user's targets are another
    rank's, and must not count twice.
    """
    part = np.array_split(users, world_size)[rank]
    return (part, True) if len(part) else (users[:1], False)


class ExampleSource(ABC):
    """What an objective makes of histories.

    Attributes:
        passes: how often an epoch goes through ``users``.
        users: int64, who has an example; ``examples`` takes some of them.
        lengths: int64, the number of events of the history of each.
        weights: float32 [T], what each event counts as a target: 0 for an unknown item or a type that is not aimed at.
    """

    passes = 1
    users: np.ndarray
    lengths: np.ndarray

    def __init__(self, sequences: Sequences, of_type: np.ndarray | None) -> None:
        self.sequences = sequences
        self.weights = (sequences.items > 0).astype(np.float32)
        if of_type is not None and sequences.event_types is not None:
            self.weights *= of_type[sequences.event_types]

    @abstractmethod
    def examples(self, users: np.ndarray, rank: int, world_size: int, random: RandomNumbers) -> Examples:
        """Return this rank's examples from a global batch of ``users``."""

    def catalogue(self, at_us: int) -> np.ndarray | None:
        """Return the items that may be negatives, int64, ascending; None, the default: all."""
        return None


class NextEvent(ExampleSource):
    """The objective "next": at every position of the latest ``max_length`` events, the event that follows."""

    def __init__(self, sequences: Sequences, max_length: int, of_type: np.ndarray | None = None) -> None:
        # one more than the encoder reads: the last one is only a target
        super().__init__(sequences.latest(max_length + 1), of_type)
        passed = np.concatenate([[0.0], np.cumsum(self.weights, dtype=np.float64)])
        first = np.minimum(self.sequences.offsets[:-1] + 1, self.sequences.offsets[1:])
        self.total_weight = passed[self.sequences.offsets[1:]] - passed[first]
        self.users = np.flatnonzero(self.total_weight > 0)
        self.lengths = self.sequences.lengths[self.users] - 1

    def examples(self, users: np.ndarray, rank: int, world_size: int, random: RandomNumbers) -> Examples:
        """Return this rank's examples from a global batch of users."""
        part, counts = share(users, rank, world_size)
        starts, ends = self.sequences.offsets[:-1][part], self.sequences.offsets[1:][part]
        histories = self.sequences.slices(part, starts, ends - 1)
        following = self._following(part)
        rows = np.flatnonzero(self.weights[following] > 0) if counts else np.empty(0, np.int64)
        every = following if len(part) == len(users) else self._following(users)
        return Examples(
            histories,
            rows,
            self.sequences.items[following[rows]],
            np.arange(len(rows)),
            self.weights[following[rows]],
            float(self.total_weight[users].sum()),
            self.sequences.items[every[self.weights[every] > 0]],
        )

    def _following(self, users: np.ndarray) -> np.ndarray:
        """Return int64, the places of every event of the users but their first one."""
        return places_of_runs(self.sequences.offsets[:-1][users] + 1, self.sequences.offsets[1:][users])


class NextOfPrefix(ExampleSource):
    """The objective "prefix": every prefix of a history is an example of its own that predicts one event.

    As in BSARec and RecBole. The targets are those of the objective "next", and more where histories are longer than
    ``max_length``; but each is seen with dropout and a batch of its own, at the price of encoding every prefix.
    ``users`` counts examples here: place of the target in the flat arrays.
    """

    def __init__(self, sequences: Sequences, max_length: int, of_type: np.ndarray | None = None) -> None:
        super().__init__(sequences, of_type)
        self.max_length, self.user_index = max_length, sequences.user_index
        first = sequences.offsets[:-1][self.user_index] if sequences.n_events else np.empty(0, np.int64)
        self.users = np.flatnonzero((self.weights > 0) & (np.arange(sequences.n_events) > first))
        self.lengths = np.minimum(self.users - first[self.users], self.max_length)

    def examples(self, users: np.ndarray, rank: int, world_size: int, random: RandomNumbers) -> Examples:
        """Return this rank's examples from a global batch of targets."""
        places, counts = share(users, rank, world_size)
        owners = self.user_index[places]
        starts = np.maximum(self.sequences.offsets[:-1][owners], places - self.max_length)
        histories = self.sequences.slices(owners, starts, places)
        own = np.arange(len(places) if counts else 0)
        targets, every = self.sequences.items[places][own], self.sequences.items[users]
        total_weight = float(self.weights[users].sum(dtype=np.float64))
        states = histories.offsets[1:][own] - 1
        return Examples(histories, states, targets, own, self.weights[places][own], total_weight, every)


class TargetWindow(ExampleSource):
    """The objective "window": one instant a batch; from each user's history before it, everything bought after it.

    The dense all-action objective of PinnerFormer (Pancha et al., KDD 2022, section 3.2), with all targets of the
    window instead of a sample. Instants lie on a grid that ends one window before the newest event. At each of them
    the world is as it was: an item that nobody had bought ``min_count`` times by then is neither target nor
    candidate (its later rise would teach the model that new items are never wanted). An item that a user had several
    times in a window is one target, with the largest weight among these events.
    """

    def __init__(
        self,
        sequences: Sequences,
        max_length: int,
        of_type: np.ndarray | None,
        window: WindowObjective,
        min_count: int = 1,
    ) -> None:
        if sequences.timestamps is None or sequences.n_events == 0:
            raise SchemaError("objective.kind = 'window' needs a log with times; use objective.kind = 'next'")
        super().__init__(sequences, of_type)
        self.max_length, self.min_count = max_length, min_count
        self.passes = window.passes_per_epoch
        self._catalogues: dict[int, np.ndarray] = {}
        self.window_us = int(window.days * DAY_US)
        self.origin_us = int(sequences.timestamps.min())
        self.newest_us = int(sequences.timestamps.max()) + 1
        last_cut = self.newest_us - self.window_us
        step = int(window.step_days * DAY_US)
        self.cuts = np.arange(last_cut, max(self.origin_us, last_cut - window.n * step), -step)
        if len(self.cuts) == 0 or last_cut <= self.origin_us:
            raise SchemaError(
                f"objective.days = {window.days:g} is longer than the training log "
                f"({(self.newest_us - self.origin_us) / DAY_US:.1f} days); lower it"
            )
        self.cuts = np.array([cut for cut in self.cuts.tolist() if len(self.catalogue(cut))], np.int64)
        if len(self.cuts) == 0:
            raise SchemaError(
                f"no item has items.min_count = {min_count} events a window before the end of the training "
                "log; lower it, or objective.days"
            )
        first, last = (self._place(np.arange(sequences.n_users), int(self.cuts[place])) for place in (-1, 0))
        self.users = np.flatnonzero((first < sequences.offsets[1:]) & (last > sequences.offsets[:-1]))
        self.lengths = np.minimum(sequences.lengths[self.users], max_length)

    @cached_property
    def _times(self) -> np.ndarray:
        """User and time as one ascending number, so that one searchsorted finds an instant in many histories."""
        span = self.newest_us - self.origin_us + 1
        times = np.asarray(self.sequences.timestamps, dtype=np.int64)
        keys: np.ndarray = self.sequences.user_index * span + times - self.origin_us
        return keys

    def _place(self, users: np.ndarray, at_us: int) -> np.ndarray:
        """Return the flat place of each user's first event at or after ``at_us``."""
        at = min(max(at_us, self.origin_us), self.newest_us) - self.origin_us
        places: np.ndarray = np.searchsorted(self._times, users * (self.newest_us - self.origin_us + 1) + at)
        return places

    @cached_property
    def _n_rows(self) -> int:
        return int(self.sequences.items.max()) + 1

    def catalogue(self, at_us: int) -> np.ndarray:
        """int64, ascending rows of the items with ``min_count`` events before ``at_us``."""
        if at_us not in self._catalogues:
            past = self.sequences.items[np.asarray(self.sequences.timestamps) < at_us]
            counts = np.bincount(past, minlength=self._n_rows)
            counts[0] = 0
            self._catalogues[at_us] = np.flatnonzero(counts >= self.min_count)
        return self._catalogues[at_us]

    def examples(self, users: np.ndarray, rank: int, world_size: int, random: RandomNumbers) -> Examples:
        """Return this rank's examples from a global batch of users."""
        cut = int(random().choice(self.cuts))
        offsets = self.sequences.offsets
        places, ends = self._place(users, cut), self._place(users, cut + self.window_us)
        usable = (places > offsets[:-1][users]) & (ends > places)
        # nobody usable: any one user without targets, so that every rank still has a batch
        chosen = np.flatnonzero(usable) if usable.any() else np.zeros(1, np.int64)
        users, places, ends = users[chosen], places[chosen], np.where(usable[chosen], ends[chosen], places[chosen])
        ids, owner, weights = self._targets(users, places, ends, cut)
        part, counts = share(np.arange(len(users)), rank, world_size)
        mine = (owner >= part[0]) & (owner <= part[-1]) & counts
        starts = np.maximum(offsets[:-1][users[part]], places[part] - self.max_length)
        histories = self.sequences.slices(users[part], starts, places[part])
        with_target, state = np.unique(owner[mine] - part[0], return_inverse=True)
        states, total_weight = histories.offsets[1:][with_target] - 1, float(weights.sum(dtype=np.float64))
        return Examples(histories, states, ids[mine], state, weights[mine], total_weight, ids, cut)

    def _targets(
        self, users: np.ndarray, places: np.ndarray, ends: np.ndarray, at_us: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the distinct items of places..ends-1, the user (ascending) that each belongs to, and weights."""
        window = self.sequences.slices(users, places, ends)
        pairs, pair_T = np.unique(window.user_index * self._n_rows + window.items, return_inverse=True)
        weights = np.zeros(len(pairs), np.float32)
        np.maximum.at(weights, pair_T, self.weights[places_of_runs(places, ends)])
        owner, ids = pairs // self._n_rows, pairs % self._n_rows
        keep = np.isin(ids, self.catalogue(at_us)) & (weights > 0)
        return ids[keep], owner[keep], weights[keep]
