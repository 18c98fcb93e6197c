"""The histories that a version serves, read a part at a time, so that publishing needs no more memory for more users.

Shape letters: U users, K interests a user, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from torch import Tensor

from bseq_plugin.data.interest_files import InterestFiles
from bseq_plugin.data.partitions import PartitionedSequences
from bseq_plugin.events.sequences import Sequences
from bseq_plugin.model.interest_model import InterestModel

USERS = 1 << 16  # of histories in memory, encoded at a time


@dataclass(frozen=True)
class Part:
    """Some users, and their interests float32 ``[U, K, D]`` if these are known already."""

    histories: Sequences
    interests_UKD: Tensor | None = None


@dataclass(frozen=True)
class InMemory:
    """Histories in rows of a vocabulary, each user once, that are in memory anyway."""

    histories: Sequences

    @property
    def n_users(self) -> int:
        """Return the number of users in all parts."""
        return self.histories.n_users

    def parts(self) -> Iterator[Part]:
        """Yield all users, in an order that is the same every time. Raises SchemaError for what can't be read."""
        n_users = self.n_users
        if n_users <= USERS:
            yield Part(self.histories)
            return
        for start in range(0, n_users, USERS):
            yield Part(self.histories.take(np.arange(start, min(start + USERS, n_users))))

    def sample(self, n: int) -> tuple[np.ndarray, Sequences]:
        """Return at most ``n`` users with events, evenly spread: places in the order of ``parts``, and histories."""
        places = spread(np.flatnonzero(self.histories.lengths), n)
        return places, self.histories.take(places)

    def moved(self, rows: np.ndarray) -> InMemory:
        """Return the same events, of item ``rows[old row]``: int64 ``[V + 1]``."""
        return InMemory(replace(self.histories, items=rows[self.histories.items]))

    def whole(self) -> Sequences:
        """Return all histories in memory: 8 bytes an event and column."""
        return self.histories


@dataclass(frozen=True)
class InPartitions:
    """Histories of a log larger than memory, a row group of a partition at a time; its methods are ``InMemory``'s.

    Attributes:
        model: what the histories are read for.
        interests: what the processes of its run have computed, a row group of interests for one of histories.
        rows: int64 ``[V + 1]``, what the rows of the model's vocabulary have become; None: they are as they were.
    """

    log: PartitionedSequences
    model: InterestModel
    interests: InterestFiles | None = None
    rows: np.ndarray | None = None

    @property
    def n_users(self) -> int:
        """See ``InMemory``."""
        return self.log.n_users

    def parts(self) -> Iterator[Part]:
        """See ``InMemory``."""
        for number, partition in enumerate(self.log.partitions):
            if not partition.users:
                continue
            known = None if self.interests is None else self.interests.open(partition.file)
            for group in range(len(self.log.row_group_users(number))):
                histories = self.log.read(number, [group], self.model.vocabulary)
                interests_UKD = None if known is None else known.read(group, histories, self.model.recipe)
                yield Part(self._in_new_rows(histories), interests_UKD)

    def sample(self, n: int) -> tuple[np.ndarray, Sequences]:
        """See ``InMemory``; a user without events makes it one fewer."""
        places = spread(np.arange(self.log.n_users), n)
        chosen, first = [], 0
        for number in range(len(self.log.partitions)):
            for group, n_users in enumerate(self.log.row_group_users(number)):
                inside = places[(places >= first) & (places < first + n_users)] - first
                if len(inside):
                    chosen.append(self.log.read(number, [group], self.model.vocabulary).take(inside))
                first += int(n_users)
        histories = self._in_new_rows(Sequences.join(chosen))
        some = np.flatnonzero(histories.lengths)
        return places[some], histories.take(some)

    def moved(self, rows: np.ndarray) -> InPartitions:
        """See ``InMemory``. Interests are computed anew: they were of the items as they were."""
        return replace(self, interests=None, rows=rows if self.rows is None else rows[self.rows])

    def whole(self) -> Sequences:
        """See ``InMemory``."""
        return self._in_new_rows(self.log.read_all(self.model.vocabulary))

    def _in_new_rows(self, histories: Sequences) -> Sequences:
        return histories if self.rows is None else replace(histories, items=self.rows[histories.items])


HistoryParts = InMemory | InPartitions


def repeated_users(histories: HistoryParts, hashes_U: np.ndarray) -> list[object]:
    """Return the ids of users that are there twice; ``hashes_U``: ``hashed`` of all users, which is sorted in place."""
    hashes_U.sort()
    suspects = np.unique(hashes_U[1:][hashes_U[1:] == hashes_U[:-1]])
    if not len(suspects):
        return []
    suspected = [part.histories.user_ids[np.isin(hashed(part.histories), suspects)] for part in histories.parts()]
    ids = pd.Index(np.concatenate(suspected))  # two ids may have one hash by chance
    repeated: list[object] = ids[ids.duplicated()].unique().tolist()
    return repeated


def hashed(histories: Sequences) -> np.ndarray:
    """Return uint64 [U], hashes of the users: 8 bytes a user is what publishing keeps of those it has seen."""
    return np.asarray(pd.util.hash_array(histories.user_ids))


def spread(places: np.ndarray, n: int) -> np.ndarray:
    """Return at most ``n`` of the places, evenly spread."""
    return places[np.linspace(0, len(places) - 1, min(n, len(places))).astype(np.int64)]
