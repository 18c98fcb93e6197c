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
from bseq_plugin.events.sequences import places_of_runs
from bseq_plugin.schema.indexes import RowMask, VectorIndex
from bseq_plugin.serving.hits import ExcludedPairs, Hits

HITS_PER_SEARCH = 1 << 21  # bounds the memory of one search, whatever B, K and k are
MIN_ALLOWED_SHARE = 0.1  # with fewer items allowed, exact search among these is cheaper than over-fetching
DTYPES = (torch.float32, torch.int64)  # of what an index gives
MAX_EXTRA = 4096  # deeper over-fetching costs more than searching the few users with very long histories again


def search_items(
    index: VectorIndex,
    oracle: VectorIndex,
    interests_BKD: Tensor,
    k: int,
    excluded: ExcludedPairs,
    allowed_V: np.ndarray | None = None,
) -> Hits:
    """Return the k best items of each user over all of the user's interests, without what is excluded or not allowed.

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
    search = _FilteredSearch(index, oracle, k, excluded.n_items, allowed_V)
    depth = search.depth(excluded)
    block = max(1, HITS_PER_SEARCH // (depth * n_interests))
    if 0 < n_users <= block:
        return search.block(interests_BKD, excluded, depth)
    parts = [Hits(*(np.empty(0, kind) for kind in (np.int64, np.int64, np.float32, np.int64)))]
    for start in range(0, n_users, block):
        end = min(start + block, n_users)
        hits = search.block(interests_BKD[start:end], excluded.slice(start, end), depth)
        parts.append(Hits(hits.users_N + start, hits.rows_N, hits.scores_N, hits.interests_N))
    return Hits.join(parts)


@dataclass(frozen=True)
class _FilteredSearch:
    index: VectorIndex
    oracle: VectorIndex
    k: int
    n_items: int
    allowed_V: np.ndarray | None

    def depth(self, excluded: ExcludedPairs) -> int:
        """Return how many hits the index is asked for."""
        if self.index.capabilities.masks:
            return min(self.k, self.n_items)
        # at least one: with nothing allowed any depth will do
        share = 1.0 if self.allowed_V is None else max(float(self.allowed_V.mean()), 1 / self.n_items)
        extra = min(int(excluded.counts_B.max(initial=0) + self.k * (1 / share - 1) * 1.2), MAX_EXTRA)
        limit = self.index.capabilities.max_k
        return min(self.k + extra, self.n_items, *([] if limit is None else [limit]))

    def block(self, interests_BKD: Tensor, excluded: ExcludedPairs, depth: int) -> Hits:
        """Return the answer for as many users as fit one search."""
        n_users, n_interests, dim = interests_BKD.shape
        queries_QD = interests_BKD.reshape(n_users * n_interests, dim)
        users_Q = np.repeat(np.arange(n_users), n_interests)
        hits, found_Q, in_order = self._kept(self.index, queries_QD, np.arange(len(users_Q)), users_Q, depth, excluded)
        short_S = self._short(found_Q, users_Q, excluded)
        if n_interests == 1 and in_order and not len(short_S):  # nothing to merge
            return Hits(hits.users_N, hits.rows_N, hits.scores_N, np.zeros_like(hits.users_N))
        if len(short_S):
            parts, size = [hits.take(~np.isin(hits.interests_N, short_S))], max(1, HITS_PER_SEARCH // self.k)
            for start in range(0, len(short_S), size):
                queries_C = short_S[start : start + size]
                queries_CD = queries_QD[torch.from_numpy(queries_C)]
                parts.append(self._kept(self.oracle, queries_CD, queries_C, users_Q, self.k, excluded)[0])
            hits = Hits.join(parts)
        return Hits(hits.users_N, hits.rows_N, hits.scores_N, hits.interests_N % n_interests).top(self.k)

    def _short(self, found_Q: np.ndarray, users_Q: np.ndarray, excluded: ExcludedPairs) -> np.ndarray:
        """Return the queries that found fewer than k, though the catalogue has more for them."""
        if not len(found_Q) or found_Q.min() >= self.k:
            return np.empty(0, np.int64)
        n_allowed = self.n_items if self.allowed_V is None else int(self.allowed_V.sum())
        return np.flatnonzero(found_Q < np.minimum(self.k, n_allowed - excluded.counts_B[users_Q]))

    def _kept(
        self,
        index: VectorIndex,
        queries_CD: Tensor,
        queries_C: np.ndarray,
        users_Q: np.ndarray,
        depth: int,
        excluded: ExcludedPairs,
    ) -> tuple[Hits, np.ndarray, bool]:
        """Return the first k hits of each query that may be shown, ``interests_N`` being the query's number; how many
        [C]; whether they are best first without equal scores (so that no row can be there twice).
        """
        depth, users_C = min(depth, self.n_items), users_Q[queries_C]
        anything_left_out = self.allowed_V is not None or len(excluded.keys_P) > 0
        if index.capabilities.masks and anything_left_out:
            answer = index.search_masked(queries_CD, depth, self._mask(users_C, excluded))
        else:
            answer = index.search(queries_CD, depth)
        scores_Cn, rows_Cn, all_there, in_order = _checked(index, answer, len(queries_C), depth, self.n_items)
        if all_there and not anything_left_out:
            scores_Cn, rows_Cn = scores_Cn[:, : self.k], rows_Cn[:, : self.k]
            n_hits = rows_Cn.shape[1]
            hits = Hits(users_C.repeat(n_hits), rows_Cn.ravel(), scores_Cn.ravel(), queries_C.repeat(n_hits))
            return hits, np.full(len(queries_C), n_hits), in_order
        kept_Cn = (rows_Cn >= 0) & ~excluded.contains(users_C[:, None], rows_Cn)
        if self.allowed_V is not None:
            kept_Cn &= self.allowed_V[rows_Cn]
        kept_Cn &= np.cumsum(kept_Cn, axis=1) <= self.k
        places_N = np.flatnonzero(kept_Cn)
        queries_N = places_N // depth
        hits = Hits(users_C[queries_N], rows_Cn.ravel()[places_N], scores_Cn.ravel()[places_N], queries_C[queries_N])
        return hits, kept_Cn.sum(axis=1), in_order

    def _mask(self, users_C: np.ndarray, excluded: ExcludedPairs) -> RowMask:
        """Return the filters as an index takes them: each query leaves out the pairs of its user."""
        first_C = np.searchsorted(excluded.keys_P, users_C * self.n_items)
        counts_C = excluded.counts_B[users_C]
        queries_P = np.repeat(np.arange(len(users_C)), counts_C)
        rows_P = excluded.keys_P[places_of_runs(first_C, first_C + counts_C)] % self.n_items
        denied = torch.from_numpy(queries_P), torch.from_numpy(rows_P)
        return RowMask(None if self.allowed_V is None else torch.from_numpy(self.allowed_V), denied)


def _checked(
    index: VectorIndex, answer: tuple[Tensor, Tensor], n_queries: int, k: int, n_items: int
) -> tuple[np.ndarray, np.ndarray, bool, bool]:
    """Return what an index gave, as numpy; whether no hit is missing; whether scores descend without equal ones.

    Raises PluginError if it is not what the contract says: it may be a plugin's.
    """
    scores_Cn, rows_Cn = answer
    if not scores_Cn.shape == rows_Cn.shape == (n_queries, k) or (scores_Cn.dtype, rows_Cn.dtype) != DTYPES:
        raise PluginError(
            f"index {index.name!r} gave scores {tuple(scores_Cn.shape)} {scores_Cn.dtype} and rows "
            f"{tuple(rows_Cn.shape)} {rows_Cn.dtype}; wanted [{n_queries}, {k}], float32 and int64: disable the plugin "
            "it comes from, or use 'exact'"
        )
    scores, rows = scores_Cn.numpy(), rows_Cn.numpy()
    if not rows.size:
        return scores, rows, True, True
    lowest = rows.min()
    in_order = bool((scores[:, 1:] < scores[:, :-1]).all()) and k > 1  # then none of them is NaN
    if lowest < -1 or rows.max() >= n_items or (not in_order and np.isnan(scores).any()):
        raise PluginError(
            f"index {index.name!r} gave rows {lowest}..{rows.max()} of {n_items} items, or a score that is not a "
            "number: disable the plugin it comes from, or use 'exact'"
        )
    return scores, rows, bool(lowest >= 0), in_order
