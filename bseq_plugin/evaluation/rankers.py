"""Rankers: what is measured. A baseline, a model or its blend becomes one with a helper of this file.

Shape letters: U users, b users of one block, K interests, V items (row 0 = unknown), D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from torch import Tensor

from bseq_plugin.data.splits import HeldOut
from bseq_plugin.evaluation.baselines import RECENT_DAYS, Baseline, PersonalFrequency, Popularity
from bseq_plugin.evaluation.neighbour_baselines import BasketCooccurrence, SessionKnn, TransitionGraph, UserKnn
from bseq_plugin.events.sequences import Sequences
from bseq_plugin.metrics import MAX_BLOCK_SCORES, top_k_items, top_k_scores
from bseq_plugin.model.interest_model import InterestModel
from bseq_plugin.serving.blend import Blend
from bseq_plugin.serving.blended_model import BlendedModel
from bseq_plugin.serving.retriever import Retriever

# a baseline holds a sparse product beside the dense block, so that its blocks are smaller than a model's
MAX_BASELINE_USERS = 256

# (histories of U users, k, mask seen items?) -> int64 [U, k] vocabulary rows, best first, -1 = nothing left
Ranker = Callable[[Sequences, int, bool], np.ndarray]


def baseline_ranker(baseline: Baseline, n_items: int) -> Ranker:
    """Return a fitted baseline as a ``Ranker``; scores exist for one block of users at a time."""
    block = max(1, min(MAX_BASELINE_USERS, MAX_BLOCK_SCORES // (n_items + 1)))

    def rank(histories: Sequences, k: int, mask_seen: bool) -> np.ndarray:
        excluded = (histories.offsets, histories.items) if mask_seen else None

        def score_block(users: slice) -> Tensor:
            return baseline.scores(histories.take(np.arange(users.start, users.stop)))

        return top_k_scores(score_block, histories.n_users, k, excluded, block)

    return rank


def interest_ranker(model: InterestModel) -> Ranker:
    """Return a ranker by interest alone: an item's score is its largest inner product with an interest."""

    def rank(histories: Sequences, k: int, mask_seen: bool) -> np.ndarray:
        excluded = (histories.offsets, histories.items) if mask_seen else None
        return top_k_items(model.encode(histories), model.item_vectors_VD, k, excluded)

    return rank


def blend_ranker(model: InterestModel, blend: Blend, held_out: HeldOut) -> Ranker:
    """Return a ranker by what a store would serve of a model and a blend, as of the held-out part's beginning.

    The blend's sources are fitted on what is known. Raises as ``fitted_sources``.
    """
    blended = BlendedModel.fitted(model, blend, held_out.known)

    def rank(histories: Sequences, k: int, mask_seen: bool) -> np.ndarray:
        return blended.top(histories, k, mask_seen, held_out.at_us)

    return rank


def served_ranker(retriever: Retriever, at: object) -> Ranker:
    """Return a ranker by what a retriever hands out at a request time: unseen items, or all with personal history."""

    def rank(histories: Sequences, k: int, mask_seen: bool) -> np.ndarray:
        numbered = replace(histories, user_ids=np.arange(histories.n_users))
        hits = retriever.retrieve(numbered, k, exclude="seen" if mask_seen else "none", at=at)
        top_UK = np.full((histories.n_users, k), -1, np.int64)
        rows_N = retriever.model.vocabulary.item_rows(hits["item_id"])
        top_UK[hits["user_id"].to_numpy(), hits["rank"].to_numpy() - 1] = rows_N
        return top_UK

    return rank


HALF_LIFE_DAYS = 120


def default_baselines(training: Sequences, at_us: int | None = None) -> list[Baseline]:
    """Return the baselines that this log can carry, not yet fitted.

    Always: popularity, personal frequency, transition graph, user kNN. With times: popularity of the last 28 days and
    personal frequency with a half life of 120 days. With sessions: session kNN and basket co-occurrence; there the
    graph does without a second hop, which only helps where histories are short (measured on both kinds of log).

    Args:
        training: what the baselines will be fitted on.
        at_us: the request time, from which ages are counted; by default just after the newest event.
    """
    timed, sessions = training.timestamps is not None, training.session_ids is not None
    baselines: list[Baseline] = [Popularity(at_us=at_us)]
    if timed:
        baselines.append(Popularity(RECENT_DAYS, at_us))
    baselines.append(PersonalFrequency(at_us=at_us))
    if timed:
        baselines.append(PersonalFrequency(HALF_LIFE_DAYS, at_us=at_us))
    baselines.append(TransitionGraph(second_hop=0.0 if sessions else 0.15, at_us=at_us))
    if sessions:
        baselines += [SessionKnn(at_us=at_us), BasketCooccurrence(at_us=at_us)]
    return [*baselines, UserKnn(at_us=at_us)]


def fitted_rankers(baselines: list[Baseline], training: Sequences, n_items: int) -> dict[str, Ranker]:
    """Fit each baseline on ``training`` (V = ``n_items``) and wrap it: name -> ``Ranker``."""
    for baseline in baselines:
        baseline.fit(training, n_items)
    return {baseline.name: baseline_ranker(baseline, n_items) for baseline in baselines}
