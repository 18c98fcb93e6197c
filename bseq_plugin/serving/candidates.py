"""Where candidates come from: interests, the user's own history, popularity.

Shape letters: B users, K interests, D width, N hits, P (user, item) pairs. Rows are index rows (vocabulary row - 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from bseq_plugin.events.sequences import Sequences
from bseq_plugin.indexes.exact import ExactIndex
from bseq_plugin.model.interest_model import InterestModel
from bseq_plugin.schema.indexes import VectorIndex
from bseq_plugin.schema.sources import CandidateSource, SourceInputs
from bseq_plugin.serving.blend import Blend, blend_scores, history_scores
from bseq_plugin.serving.filters import RowFilters
from bseq_plugin.serving.hits import ExcludedPairs, Hits
from bseq_plugin.serving.search import search_items
from bseq_plugin.serving.sources import SourceScores, ask_sources, searcher

INTEREST, HISTORY, POPULAR = "interest", "history", "popular"
PAIRS_PER_BLOCK = 1 << 15


@dataclass(frozen=True)
class Answering:
    """What candidates come from: a version of a store, or a model whose blend is measured before it is published.

    Attributes:
        oracle: the exact index over the same vectors, for what ``index`` can't answer.
        sources: the fitted sources that the blend asks.
        watermark_us: the newest event's time, the request time where none is given; None: each user's own newest event.
        popular_rows: int64 [V], index rows of the items, most events first; ``popular_counts``: how many they have.
    """

    model: InterestModel
    index: VectorIndex
    oracle: ExactIndex
    blend: Blend
    sources: Mapping[str, CandidateSource]
    watermark_us: int | None
    popular_rows: np.ndarray
    popular_counts: np.ndarray


@dataclass(frozen=True)
class Candidates:
    """Hits, each with its sources (str [N], joined by "+"); an interest of -1 means none."""

    hits: Hits
    sources_N: np.ndarray

    def of_users(self, users: np.ndarray) -> Candidates:
        """Return the same candidates with user ``users[b]`` instead of b."""
        return Candidates(replace(self.hits, users_N=users[self.hits.users_N]), self.sources_N)

    def take(self, places: np.ndarray) -> Candidates:
        """Return the candidates at ``places`` (or under a mask)."""
        return Candidates(self.hits.take(places), self.sources_N[places])

    @staticmethod
    def join(parts: list[Candidates]) -> Candidates:
        """Return all candidates, ascending by user; the parts have no users in common."""
        hits = Hits.join([part.hits for part in parts])
        order = np.argsort(hits.users_N, kind="stable")
        return Candidates(hits.take(order), np.concatenate([part.sources_N for part in parts])[order])


def popular_candidates(served: Answering, users: np.ndarray, k: int, filters: RowFilters) -> Candidates:
    """Return the k items with the most events that may be shown, for each of ``users``; the score is their number.

    ``filters``: of these users, numbered from 0.
    """
    shown_V = slice(None) if filters.allowed_V is None else filters.allowed_V[served.popular_rows]
    rows, counts = served.popular_rows[shown_V], served.popular_counts[shown_V]
    excluded = ExcludedPairs.of(filters.users_P, filters.rows_P, len(users), served.model.vocabulary.n_items)
    n_rows = min(len(rows), k + int(excluded.counts_B.max(initial=0)))
    kept_Bn = ~excluded.contains(np.arange(len(users))[:, None], rows[None, :n_rows])
    kept_Bn &= np.cumsum(kept_Bn, axis=1) <= k
    places_N, ranks_N = np.nonzero(kept_Bn)
    n_hits = len(places_N)
    hits = Hits(users[places_N], rows[ranks_N], counts[ranks_N].astype(np.float32), np.full(n_hits, -1, np.int64))
    return Candidates(hits, np.full(n_hits, POPULAR, object))


def interest_candidates(
    served: Answering,
    histories: Sequences,
    k: int,
    exclude_seen: bool,
    blend: bool,
    at_us: int | None,
    filters: RowFilters,
) -> Candidates:
    """Return the k best items by interest, blended with other sources if asked for; every user has a known item.

    ``at_us``: the request time; None: the newest event of ``served`` or of the user, whichever is later.
    """
    n_items = served.model.vocabulary.n_items
    known = histories.known()
    n_seen = known.n_events if exclude_seen else 0
    users_P = np.concatenate([known.user_index[:n_seen], filters.users_P])
    rows_P = np.concatenate([known.items[:n_seen] - 1, filters.rows_P])
    excluded = ExcludedPairs.of(users_P, rows_P, histories.n_users, n_items)
    interests_BKD = served.model.encode(histories)
    hits = search_items(served.index, served.oracle, interests_BKD, min(k, n_items), excluded, filters.allowed_V)
    if not blend:
        return Candidates(hits, np.full(len(hits.users_N), INTEREST, object))
    inputs = SourceInputs(known, interests_BKD, served.model.item_vectors_VD, searcher(served.index, n_items))
    answers = ask_sources(served.sources, inputs, k, excluded, filters.allowed_V)
    past = []
    if not exclude_seen:
        shown_P = ~excluded.contains(known.user_index, known.items - 1)
        if filters.allowed_V is not None:
            shown_P &= filters.allowed_V[known.items - 1]
        shown, ages_from = known.where(shown_P), _ages_from(served, histories, at_us)
        for days in (served.blend.half_life_days, served.blend.recent_half_life_days):  # the same pairs twice
            own = history_scores(shown, ages_from, days)
            past.append(SourceScores(own.users_P * n_items + own.items_P - 1, own.scores_P))
    if not answers and not past:  # nothing that could change the order of interest
        return Candidates(hits, np.full(len(hits.users_N), INTEREST, object))
    return _blended(served, interests_BKD, hits, past, answers, k)


def _blended(
    served: Answering,
    interests_BKD: Tensor,
    hits: Hits,
    past: list[SourceScores],
    answers: dict[str, SourceScores],
    k: int,
) -> Candidates:
    """Return the best k of (the top k by interest) and (history and sources): nothing else can be among the best k.

    An item that none of them has keeps its interest score, so whatever beats it by interest beats it in the blend.
    """
    n_items = served.model.vocabulary.n_items
    keys_N = hits.users_N * n_items + hits.rows_N
    rest_R = np.setdiff1d(np.concatenate([one.keys_N for one in [*past, *answers.values()]]), keys_N)
    vectors_VD = served.model.item_vectors_VD[1:]
    scores_R, interests_R = interest_scores(interests_BKD, vectors_VD, rest_R // n_items, rest_R % n_items)
    union = Hits.join([hits, Hits(rest_R // n_items, rest_R % n_items, scores_R, interests_R)])
    keys_U = np.concatenate([keys_N, rest_R])
    old_U, recent_U = [one.at(keys_U)[0] for one in past] if past else [np.zeros_like(union.scores_N)] * 2
    of_sources = {name: one.at(keys_U)[0] for name, one in answers.items()}
    blended_U = blend_scores(union.scores_N, old_U, served.blend, recent_U, of_sources)
    best = replace(union, scores_N=blended_U.astype(np.float32)).top(k)
    keys_B = best.users_N * n_items + best.rows_N
    sources = {INTEREST: np.isin(keys_B, keys_N), **({HISTORY: past[0].at(keys_B)[1]} if past else {})}
    return Candidates(best, _labels(sources | {name: one.at(keys_B)[1] for name, one in answers.items()}))


def _labels(finders: dict[str, np.ndarray]) -> np.ndarray:
    """Return str [N]: the names of those that found each hit (bool [N] a name), joined by "+"."""
    masks_N = sum(there.astype(np.int64) << bit for bit, there in enumerate(finders.values()))
    kinds, places_N = np.unique(masks_N, return_inverse=True)
    texts = ["+".join(name for bit, name in enumerate(finders) if kind >> bit & 1) for kind in kinds.tolist()]
    return np.array([*texts, ""], object)[places_N.ravel()]


def _ages_from(served: Answering, histories: Sequences, at_us: int | None) -> int | np.ndarray | None:
    """Return ``at``, or for each user the newest event of the store or their own: no function of the other users."""
    if at_us is not None or histories.timestamps is None:
        return at_us
    # every user here has events, in order of time
    newest_B: np.ndarray = histories.timestamps[histories.offsets[1:] - 1]
    return newest_B if served.watermark_us is None else np.maximum(newest_B, served.watermark_us)


def interest_scores(
    interests_BKD: Tensor, vectors_VD: Tensor, users_P: np.ndarray, rows_P: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 [P], the best score over a user's interests, and int64 [P], which interest that is.

    ``rows_P``: rows of ``vectors_VD``.
    """
    scores, interests = [np.empty(0, np.float32)], [np.empty(0, np.int64)]
    for start in range(0, len(users_P), PAIRS_PER_BLOCK):
        block = slice(start, start + PAIRS_PER_BLOCK)
        interests_PKD = interests_BKD[torch.from_numpy(users_P[block])]
        scores_PK = torch.einsum("pkd,pd->pk", interests_PKD, vectors_VD[torch.from_numpy(rows_P[block])])
        best_P, which_P = scores_PK.max(dim=1)
        scores.append(best_P.numpy())
        interests.append(which_P.numpy())
    return np.concatenate(scores), np.concatenate(interests)
