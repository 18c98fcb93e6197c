"""Where candidates come from: interests, the user's own history, popularity.

Shape letters: B users, K interests, D width, N hits, P (user, item) pairs. Rows are index rows (vocabulary row - 1).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from bseq_plugin.data.sequences import Sequences
from bseq_plugin.retrieval.blend import blend_scores, history_scores
from bseq_plugin.retrieval.filters import RowFilters
from bseq_plugin.retrieval.hits import Excluded, Hits
from bseq_plugin.retrieval.search import search_items
from bseq_plugin.retrieval.served import Served

INTEREST, HISTORY, BOTH, POPULAR = "interest", "history", "both", "popular"
PAIRS_PER_BLOCK = 1 << 15


@dataclass(frozen=True)
class Candidates:
    """Hits, each with its source (str [N]); an interest of -1 means none."""

    hits: Hits
    sources_N: np.ndarray

    def of_users(self, users: np.ndarray) -> Candidates:
        """The same with user ``users[b]`` instead of b."""
        return Candidates(replace(self.hits, users_N=users[self.hits.users_N]), self.sources_N)

    def take(self, places: np.ndarray) -> Candidates:
        """Those at ``places`` (or under a mask)."""
        return Candidates(self.hits.take(places), self.sources_N[places])

    @staticmethod
    def join(parts: list[Candidates]) -> Candidates:
        """All of them, ascending by user; the parts have no users in common."""
        hits = Hits.join([part.hits for part in parts])
        order = np.argsort(hits.users_N, kind="stable")
        return Candidates(hits.take(order), np.concatenate([part.sources_N for part in parts])[order])


def popular_candidates(served: Served, users: np.ndarray, k: int, filters: RowFilters) -> Candidates:
    """The k items with the most events that may be shown, for each of ``users``; the score is the number of events.

    ``filters``: of these users, numbered from 0.
    """
    shown_V = slice(None) if filters.allowed_V is None else filters.allowed_V[served.popular_rows]
    rows, counts = served.popular_rows[shown_V], served.popular_counts[shown_V]
    excluded = Excluded.of(filters.users_P, filters.rows_P, len(users), served.model.vocabulary.n_items)
    n_rows = min(len(rows), k + int(excluded.counts_B.max(initial=0)))
    kept_Bn = ~excluded.contains(np.arange(len(users))[:, None], rows[None, :n_rows])
    kept_Bn &= np.cumsum(kept_Bn, axis=1) <= k
    places_N, ranks_N = np.nonzero(kept_Bn)
    n_hits = len(places_N)
    hits = Hits(users[places_N], rows[ranks_N], counts[ranks_N].astype(np.float32), np.full(n_hits, -1, np.int64))
    return Candidates(hits, np.full(n_hits, POPULAR, object))


def interest_candidates(
    served: Served,
    histories: Sequences,
    k: int,
    exclude_seen: bool,
    blend: bool,
    at_us: int | None,
    filters: RowFilters,
) -> Candidates:
    """The k best items by interest, blended with history if asked for; every user has a known item."""
    n_items = served.model.vocabulary.n_items
    known = histories.known()
    n_seen = known.n_events if exclude_seen else 0
    users_P = np.concatenate([known.user_index[:n_seen], filters.users_P])
    rows_P = np.concatenate([known.items[:n_seen] - 1, filters.rows_P])
    excluded = Excluded.of(users_P, rows_P, histories.n_users, n_items)
    interests_BKD = served.model.encode(histories)
    hits = search_items(served.index, served.oracle, interests_BKD, min(k, n_items), excluded, filters.allowed_V)
    if exclude_seen or not blend:  # without items of the history, the blend is the order of interest
        return Candidates(hits, np.full(len(hits.users_N), INTEREST, object))
    shown_P = ~excluded.contains(known.user_index, known.items - 1)
    if filters.allowed_V is not None:
        shown_P &= filters.allowed_V[known.items - 1]
    return _blended(served, known.where(shown_P), interests_BKD, hits, k, _ages_from(served, histories, at_us))


def _blended(
    served: Served, histories: Sequences, interests_BKD: Tensor, hits: Hits, k: int, ages_from: int | np.ndarray | None
) -> Candidates:
    """The best k of (the top k by interest) and (the history): nothing else can be among the best k of all items.

    An item outside the history keeps its interest score, so whatever beats it by interest beats it in the blend.
    """
    n_items = served.model.vocabulary.n_items
    past = history_scores(histories, ages_from, served.blend.half_life_days)
    recent = history_scores(histories, ages_from, served.blend.recent_half_life_days)  # of the same pairs
    keys_N, keys_P = hits.users_N * n_items + hits.rows_N, past.users_P * n_items + past.items_P - 1
    if len(keys_P) == 0:  # nothing of any history may be shown
        scores_N = blend_scores(hits.scores_N, np.zeros_like(hits.scores_N), served.blend)
        return Candidates(replace(hits, scores_N=scores_N), np.full(len(keys_N), INTEREST, object))
    places_N = np.searchsorted(keys_P, keys_N).clip(max=len(keys_P) - 1)
    in_history_N = keys_P[places_N] == keys_N
    rest_P = ~np.isin(keys_P, keys_N)
    scores_R, interests_R = _interest_scores(served, interests_BKD, past.users_P[rest_P], past.items_P[rest_P] - 1)
    rest = Hits(past.users_P[rest_P], past.items_P[rest_P] - 1, scores_R, interests_R)
    union = Hits.join([hits, rest])
    past_U, recent_U = (
        np.concatenate([np.where(in_history_N, part.scores_P[places_N], 0), part.scores_P[rest_P]])
        for part in (past, recent)
    )
    blended = blend_scores(union.scores_N, past_U, served.blend, recent_U)
    best = replace(union, scores_N=blended.astype(np.float32)).top(k)
    keys_best = best.users_N * n_items + best.rows_N
    by_history = np.where(np.isin(keys_best, keys_N), BOTH, HISTORY)
    sources = np.where(np.isin(keys_best, keys_P), by_history, INTEREST)
    return Candidates(best, sources.astype(object))


def _ages_from(served: Served, histories: Sequences, at_us: int | None) -> int | np.ndarray | None:
    """``at``, or for each user the newest event of the store or their own: never a function of the other users."""
    if at_us is not None or histories.timestamps is None:
        return at_us
    newest_B: np.ndarray = histories.timestamps[
        histories.offsets[1:] - 1
    ]  # every user here has events, in order of time
    return newest_B if served.watermark_us is None else np.maximum(newest_B, served.watermark_us)


def _interest_scores(
    served: Served, interests_BKD: Tensor, users_P: np.ndarray, rows_P: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """float32 [P], the best score over a user's interests, and int64 [P], which interest that is."""
    vectors_VD = served.model.item_vectors_VD[1:]
    scores, interests = [np.empty(0, np.float32)], [np.empty(0, np.int64)]
    for start in range(0, len(users_P), PAIRS_PER_BLOCK):
        block = slice(start, start + PAIRS_PER_BLOCK)
        interests_PKD = interests_BKD[torch.from_numpy(users_P[block])]
        scores_PK = torch.einsum("pkd,pd->pk", interests_PKD, vectors_VD[torch.from_numpy(rows_P[block])])
        best_P, which_P = scores_PK.max(dim=1)
        scores.append(best_P.numpy())
        interests.append(which_P.numpy())
    return np.concatenate(scores), np.concatenate(interests)
