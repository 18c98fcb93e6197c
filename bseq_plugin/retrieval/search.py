"""From interests to ranked items: filters, -1, several interests a user. All of it here, once, for every backend.

Shape letters: B users, K interests, D width, Q = B * K queries, V items, N hits of all users in one flat list,
P (user, item) pairs. Rows here are index rows 0..V-1: vocabulary row minus 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bseq_plugin.errors import PluginError
from bseq_plugin.schema.parts import RowMask, VectorIndex

HITS_PER_SEARCH = 1 << 21  # bounds the memory of one search, whatever B, K and k are
MIN_ALLOWED_SHARE = 0.1  # with fewer items allowed, exact search among these is cheaper than over-fetching
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

    def among(self, allowed_V: np.ndarray) -> Excluded:
        """Only the pairs whose item is allowed: the others are left out anyhow."""
        keys_P = self.keys_P[allowed_V[self.keys_P % self.n_items]]
        return Excluded(keys_P, np.bincount(keys_P // self.n_items, minlength=len(self.counts_B)), self.n_items)

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


def search_items(
    index: VectorIndex,
    oracle: VectorIndex,
    interests_BKD: Tensor,
    k: int,
    excluded: Excluded,
    allowed_V: np.ndarray | None = None,
) -> Hits:
    """The k best items of each user over all of the user's interests, without what is excluded or not allowed.

    Args:
        index: what is asked first, for k and as many more as are left out.
        oracle: exact, with masks and without a limit of k; asked again for users of whom too little was left.
        interests_BKD: float32, B >= 1.
        allowed_V: bool [V], None = all.

    A user gets fewer than k items only if the catalogue has no more to give.
    """
    n_users, n_interests, _ = interests_BKD.shape
    if allowed_V is not None:
        excluded = excluded.among(allowed_V)
        if allowed_V.mean() < MIN_ALLOWED_SHARE:
            index = oracle
    search = _Search(index, oracle, k, excluded.n_items, allowed_V)
    block = max(1, HITS_PER_SEARCH // (search.depth(excluded) * n_interests))
    parts = [Hits(*(np.empty(0, kind) for kind in (np.int64, np.int64, np.float32, np.int64)))]
    for start in range(0, n_users, block):
        end = min(start + block, n_users)
        hits = search.block(interests_BKD[start:end], excluded.slice(start, end), search.depth(excluded))
        parts.append(Hits(hits.users_N + start, hits.rows_N, hits.scores_N, hits.interests_N))
    return Hits.join(parts)


@dataclass(frozen=True)
class _Search:
    index: VectorIndex
    oracle: VectorIndex
    k: int
    n_items: int
    allowed_V: np.ndarray | None

    def depth(self, excluded: Excluded) -> int:
        """How many hits the index is asked for."""
        if self.index.capabilities.masks:
            return min(self.k, self.n_items)
        # at least one: with nothing allowed any depth will do
        share = 1.0 if self.allowed_V is None else max(float(self.allowed_V.mean()), 1 / self.n_items)
        extra = min(int(excluded.counts_B.max(initial=0) + self.k * (1 / share - 1) * 1.2), MAX_EXTRA)
        limit = self.index.capabilities.max_k
        return min(self.k + extra, self.n_items, *([] if limit is None else [limit]))

    def block(self, interests_BKD: Tensor, excluded: Excluded, depth: int) -> Hits:
        """The answer for as many users as fit one search."""
        n_users, n_interests, dim = interests_BKD.shape
        queries_QD = interests_BKD.reshape(n_users * n_interests, dim)
        users_Q = np.repeat(np.arange(n_users), n_interests)
        hits, found_Q = self._kept(self.index, queries_QD, np.arange(len(users_Q)), users_Q, depth, excluded)
        n_allowed = self.n_items if self.allowed_V is None else int(self.allowed_V.sum())
        wanted_Q = np.minimum(self.k, n_allowed - excluded.counts_B[users_Q])
        short_S = np.flatnonzero(found_Q < wanted_Q)
        if len(short_S):
            parts, size = [hits.take(~np.isin(hits.interests_N, short_S))], max(1, HITS_PER_SEARCH // self.k)
            for start in range(0, len(short_S), size):
                queries_C = short_S[start : start + size]
                queries_CD = queries_QD[torch.from_numpy(queries_C)]
                parts.append(self._kept(self.oracle, queries_CD, queries_C, users_Q, self.k, excluded)[0])
            hits = Hits.join(parts)
        return Hits(hits.users_N, hits.rows_N, hits.scores_N, hits.interests_N % n_interests).top(self.k)

    def _kept(
        self,
        index: VectorIndex,
        queries_CD: Tensor,
        queries_C: np.ndarray,
        users_Q: np.ndarray,
        depth: int,
        excluded: Excluded,
    ) -> tuple[Hits, np.ndarray]:
        """The first k hits of each query that may be shown, ``interests_N`` being the query's number; how many [C]."""
        depth, users_C = min(depth, self.n_items), users_Q[queries_C]
        anything_left_out = self.allowed_V is not None or len(excluded.keys_P) > 0
        if index.capabilities.masks and anything_left_out:
            found = index.search_masked(queries_CD, depth, self._mask(users_C, excluded))
        else:
            found = index.search(queries_CD, depth)
        scores_Cn, rows_Cn = _checked(index, found, len(queries_C), depth, self.n_items)
        kept_Cn = (rows_Cn >= 0) & ~excluded.contains(users_C[:, None], rows_Cn)
        if self.allowed_V is not None:
            kept_Cn &= self.allowed_V[rows_Cn]
        kept_Cn &= np.cumsum(kept_Cn, axis=1) <= self.k
        queries_N, places_N = np.nonzero(kept_Cn)
        hits = Hits(
            users_C[queries_N], rows_Cn[queries_N, places_N], scores_Cn[queries_N, places_N], queries_C[queries_N]
        )
        return hits, kept_Cn.sum(axis=1)

    def _mask(self, users_C: np.ndarray, excluded: Excluded) -> RowMask:
        """The filters as an index takes them: each query leaves out the pairs of its user."""
        first_C = np.searchsorted(excluded.keys_P, users_C * self.n_items)
        counts_C = excluded.counts_B[users_C]
        queries_P = np.repeat(np.arange(len(users_C)), counts_C)
        places_P = np.arange(len(queries_P)) + np.repeat(first_C - (np.cumsum(counts_C) - counts_C), counts_C)
        denied = torch.from_numpy(queries_P), torch.from_numpy(excluded.keys_P[places_P] % self.n_items)
        return RowMask(None if self.allowed_V is None else torch.from_numpy(self.allowed_V), denied)


def _checked(
    index: VectorIndex, found: tuple[Tensor, Tensor], n_queries: int, k: int, n_items: int
) -> tuple[np.ndarray, np.ndarray]:
    """What an index gave, as numpy. Raises PluginError if it is not what the contract says: it may be a plugin's."""
    scores_Cn, rows_Cn = found
    if not scores_Cn.shape == rows_Cn.shape == (n_queries, k) or rows_Cn.dtype != torch.int64:
        raise PluginError(
            f"index {index.name!r} gave scores {tuple(scores_Cn.shape)} and rows {tuple(rows_Cn.shape)} "
            f"{rows_Cn.dtype}; wanted [{n_queries}, {k}] and int64: disable the plugin it comes from, or use 'exact'"
        )
    scores, rows = scores_Cn.numpy(), rows_Cn.numpy()
    if rows.size and (rows.min() < -1 or rows.max() >= n_items or np.isnan(scores).any()):
        raise PluginError(
            f"index {index.name!r} gave rows {rows.min()}..{rows.max()} of {n_items} items, or a score that is not a "
            "number: disable the plugin it comes from, or use 'exact'"
        )
    return scores, rows
