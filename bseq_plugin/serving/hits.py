"""Flat lists of hits, and of items that must not be among them.

Shape letters: B users, V items, N hits of all users in one flat list, P (user, item) pairs. Rows here are index rows
0..V-1: vocabulary row minus 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ExcludedPairs:
    """Items that must not be shown: the sorted, distinct numbers ``user * V + row``."""

    keys_P: np.ndarray
    counts_B: np.ndarray
    n_items: int

    @classmethod
    def of(cls, users_P: np.ndarray, rows_P: np.ndarray, n_users: int, n_items: int) -> ExcludedPairs:
        """Return the exclusion of (user, row) pairs in any order, repeats allowed."""
        keys_P = np.unique(users_P * n_items + rows_P)
        return cls(keys_P, np.bincount(keys_P // n_items, minlength=n_users), n_items)

    def among(self, allowed_V: np.ndarray) -> ExcludedPairs:
        """Return only the pairs whose item is allowed: the others are left out anyhow."""
        keys_P = self.keys_P[allowed_V[self.keys_P % self.n_items]]
        return ExcludedPairs(keys_P, np.bincount(keys_P // self.n_items, minlength=len(self.counts_B)), self.n_items)

    def slice(self, start: int, end: int) -> ExcludedPairs:
        """Return the pairs of users start..end-1, who become 0..end-start-1."""
        first, last = np.searchsorted(self.keys_P, [start * self.n_items, end * self.n_items])
        return ExcludedPairs(self.keys_P[first:last] - start * self.n_items, self.counts_B[start:end], self.n_items)

    def contains(self, users: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return whether each pair is excluded, for arrays that broadcast against each other."""
        keys = users * self.n_items + rows
        if len(self.keys_P) == 0:
            return np.zeros(keys.shape, bool)
        places = np.searchsorted(self.keys_P, keys).clip(max=len(self.keys_P) - 1)
        return np.asarray(self.keys_P[places] == keys)


@dataclass(frozen=True)
class Hits:
    """Flat lists, ascending by user, then best first; no item twice for one user.

    Attributes:
        users_N: int64, places 0..B-1.
        rows_N: int64, index rows.
        scores_N: float32.
        interests_N: int64, which of the user's interests gave the score.
    """

    users_N: np.ndarray
    rows_N: np.ndarray
    scores_N: np.ndarray
    interests_N: np.ndarray

    def ranks(self) -> np.ndarray:
        """Return int64 [N], the place of each hit from 1 within its user."""
        starts = np.flatnonzero(np.diff(self.users_N, prepend=-1))
        lengths = np.diff(np.append(starts, len(self.users_N)))
        return np.arange(len(self.users_N)) - np.repeat(starts, lengths) + 1

    def take(self, places: np.ndarray) -> Hits:
        """Return the hits at ``places`` (or under a mask)."""
        return Hits(self.users_N[places], self.rows_N[places], self.scores_N[places], self.interests_N[places])

    def top(self, k: int) -> Hits:
        """Return the hits sorted, each item once with its best score (of equal ones the first interest), k a user.

        Equal scores come in ascending row order.
        """
        # users and scores in one number: a sort of each column takes several times as long
        bits_N = self.scores_N.view(np.int32).astype(np.int64)  # -0.0 equals 0.0
        keys_N = (self.users_N << 32) - np.where(bits_N < 0, -(bits_N & 0x7FFFFFFF), bits_N)
        order = np.lexsort((self.interests_N, keys_N))
        n_items = int(self.rows_N.max(initial=0)) + 1
        _, first = np.unique((self.users_N * n_items + self.rows_N)[order], return_index=True)
        each_once = order[first]  # ascending by user, then row
        best = self.take(each_once[np.argsort(keys_N[each_once], kind="stable")])
        return best.take(best.ranks() <= k)

    @staticmethod
    def join(parts: list[Hits]) -> Hits:
        """Return the hits of all parts, one part after the other."""
        columns = [[p.users_N, p.rows_N, p.scores_N, p.interests_N] for p in parts]
        return Hits(*(np.concatenate(column) for column in zip(*columns, strict=True)))
