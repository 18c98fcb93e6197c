"""From interests to ranked items: filters, -1, several interests a user. All of it here, once, for every backend.

Shape letters: B users, K interests, D width, Q = B * K queries, V items, N hits of all users in one flat list,
P (user, item) pairs. Rows here are index rows 0..V-1: vocabulary row minus 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bseq_plugin.schema.parts import VectorIndex

HITS_PER_SEARCH = 1 << 21  # bounds the memory of one search, whatever B, K and k are
MAX_EXTRA = 4096  # deeper over-fetching costs more than searching the few users with very long histories again


@dataclass(frozen=True)
class Excluded:
    """Items that must not be shown: the sorted, distinct numbers ``user * V + row``."""

    keys_P: np.ndarray
    counts_B: np.ndarray
    n_items: int

    @classmethod
    def of(cls, users_P: np.ndarray, rows_P: np.ndarray, n_users: int, n_items: int) -> Excluded:
        """From (user, row) pairs in any order, repeats allowed."""
        keys_P = np.unique(users_P * n_items + rows_P)
        return cls(keys_P, np.bincount(keys_P // n_items, minlength=n_users), n_items)

    def slice(self, start: int, end: int) -> Excluded:
        """Of users start..end-1, who become 0..end-start-1."""
        first, last = np.searchsorted(self.keys_P, [start * self.n_items, end * self.n_items])
        return Excluded(self.keys_P[first:last] - start * self.n_items, self.counts_B[start:end], self.n_items)

    def contains(self, users: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """bool, for arrays that broadcast against each other."""
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
        """int64 [N], from 1 within each user."""
        starts = np.flatnonzero(np.diff(self.users_N, prepend=-1))
        lengths = np.diff(np.append(starts, len(self.users_N)))
        return np.arange(len(self.users_N)) - np.repeat(starts, lengths) + 1

    def take(self, places: np.ndarray) -> Hits:
        """The hits at ``places`` (or under a mask)."""
        return Hits(self.users_N[places], self.rows_N[places], self.scores_N[places], self.interests_N[places])

    def top(self, k: int) -> Hits:
        """Sorted, each item once with its best score (the first interest of equal ones), at most k a user.

        Equal scores come in ascending row order.
        """
        best = self.take(np.lexsort((self.interests_N, -self.scores_N, self.rows_N, self.users_N)))
        first = (np.diff(best.users_N, prepend=-1) != 0) | (np.diff(best.rows_N, prepend=-1) != 0)
        best = best.take(first)
        best = best.take(np.lexsort((best.rows_N, -best.scores_N, best.users_N)))
        return best.take(best.ranks() <= k)

    @staticmethod
    def join(parts: list[Hits]) -> Hits:
        """One after the other."""
        columns = [[p.users_N, p.rows_N, p.scores_N, p.interests_N] for p in parts]
        return Hits(*(np.concatenate(column) for column in zip(*columns, strict=True)))


def search_items(index: VectorIndex, oracle: VectorIndex, interests_BKD: Tensor, k: int, excluded: Excluded) -> Hits:
    """The k best items of each user over all of the user's interests, without the excluded ones.

    Args:
        index: what is asked first, for k and as many more as are excluded.
        oracle: exact, without a limit of k; asked again for users of whom too little was left.
        interests_BKD: float32, B >= 1.

    A user gets fewer than k items only if the catalogue has no more to give.
    """
    n_users, n_interests, _ = interests_BKD.shape
    depth = _depth(index, k, excluded)
    block = max(1, HITS_PER_SEARCH // (depth * n_interests))
    parts = []
    for start in range(0, n_users, block):
        end = min(start + block, n_users)
        hits = _search_block(index, oracle, interests_BKD[start:end], k, depth, excluded.slice(start, end))
        parts.append(Hits(hits.users_N + start, hits.rows_N, hits.scores_N, hits.interests_N))
    return Hits.join(parts)


def _depth(index: VectorIndex, k: int, excluded: Excluded) -> int:
    extra = min(int(excluded.counts_B.max(initial=0)), MAX_EXTRA)
    limit = index.capabilities.max_k
    return min(k + extra, excluded.n_items, *([] if limit is None else [limit]))


def _search_block(
    index: VectorIndex, oracle: VectorIndex, interests_BKD: Tensor, k: int, depth: int, excluded: Excluded
) -> Hits:
    n_users, n_interests, dim = interests_BKD.shape
    queries_QD = interests_BKD.reshape(n_users * n_interests, dim)
    users_Q = np.repeat(np.arange(n_users), n_interests)
    hits, found_Q = _kept(index, queries_QD, np.arange(len(users_Q)), users_Q, depth, k, excluded)
    wanted_Q = np.minimum(k, excluded.n_items - excluded.counts_B[users_Q])
    short_S = np.flatnonzero(found_Q < wanted_Q)
    if len(short_S):
        parts = [hits.take(~np.isin(hits.interests_N, short_S))]
        for queries_C, deeper in _deeper(short_S, users_Q, k, excluded):
            parts.append(
                _kept(oracle, queries_QD[torch.from_numpy(queries_C)], queries_C, users_Q, deeper, k, excluded)[0]
            )
        hits = Hits.join(parts)
    return Hits(hits.users_N, hits.rows_N, hits.scores_N, hits.interests_N % n_interests).top(k)


def _deeper(short_S: np.ndarray, users_Q: np.ndarray, k: int, excluded: Excluded) -> Iterator[tuple[np.ndarray, int]]:
    """(queries, depth) blocks in which every query has k hits left, by ascending depth so that little is wasted."""
    depths_S = np.minimum(k + excluded.counts_B[users_Q[short_S]], excluded.n_items)
    order = np.argsort(depths_S, kind="stable")
    size = max(1, HITS_PER_SEARCH // int(depths_S.max()))
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        yield short_S[chosen], int(depths_S[chosen].max())


def _kept(
    index: VectorIndex,
    queries_CD: Tensor,
    queries_C: np.ndarray,
    users_Q: np.ndarray,
    depth: int,
    k: int,
    excluded: Excluded,
) -> tuple[Hits, np.ndarray]:
    """The first k allowed hits of each query, ``interests_N`` being the query's number; and how many there are [C]."""
    scores_Cn, rows_Cn = (x.numpy() for x in index.search(queries_CD, depth))
    allowed_Cn = (rows_Cn >= 0) & ~excluded.contains(users_Q[queries_C][:, None], rows_Cn)
    allowed_Cn &= np.cumsum(allowed_Cn, axis=1) <= k
    queries_N, places_N = np.nonzero(allowed_Cn)
    hits = Hits(
        users_Q[queries_C][queries_N],
        rows_Cn[queries_N, places_N],
        scores_Cn[queries_N, places_N],
        queries_C[queries_N],
    )
    return hits, allowed_Cn.sum(axis=1)
