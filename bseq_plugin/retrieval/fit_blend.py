"""Choose blend weights on held-out events, by scoring exactly what the retriever would serve.

Shape letters: U users, P (user, item) pairs that can be among the best, K ranked places.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bseq_plugin.data.splits import EvaluationSet
from bseq_plugin.metrics import ranking_metrics, top_k_items
from bseq_plugin.model.interest_model import InterestModel
from bseq_plugin.retrieval.blend import BlendWeights, blend_scores, history_scores

HALF_LIVES = (60.0, 90.0, 120.0, 180.0, 365.0)  # days
HISTORY_WEIGHTS = (0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 20.0)
PAIRS_PER_BLOCK = 1 << 16


@dataclass(frozen=True)
class BlendFit:
    """The chosen weights, what they reached, and every combination tried: (weights, metric), in order of the grid."""

    weights: BlendWeights
    metric: float
    tried: tuple[tuple[BlendWeights, float], ...]


def fit_blend(
    model: InterestModel,
    evaluation: EvaluationSet,
    at_us: int | None,
    k: int = 20,
    half_lives: Sequence[float] = HALF_LIVES,
    history_weights: Sequence[float] = HISTORY_WEIGHTS,
) -> BlendFit:
    """The weights of largest NDCG@k on all items, with interest weight 1; the first of equals.

    Args:
        evaluation: held-out events with the items of the history kept as targets.
        at_us: where the held-out events begin (microseconds, UTC); ages are counted from there.
    """
    pairs = _pairs(model, evaluation, k)
    tried = []
    for half_life, weight in itertools.product(half_lives, history_weights):
        weights = BlendWeights(1.0, weight, half_life)
        past = history_scores(evaluation.histories, at_us, half_life)
        history_P = np.zeros(len(pairs.keys_P), np.float32)
        history_P[np.searchsorted(pairs.keys_P, past.users_P * pairs.n_rows + past.items_P)] = past.scores_P
        top_UK = pairs.top(blend_scores(pairs.interest_P, history_P, weights), k)
        ndcg_U = ranking_metrics(top_UK, evaluation.target_offsets, evaluation.target_items, [k])[f"ndcg@{k}"]
        tried.append((weights, float(ndcg_U.mean())))
    best, metric = max(tried, key=lambda row: row[1])
    return BlendFit(best, metric, tuple(tried))


@dataclass(frozen=True)
class _Pairs:
    """Pairs ascending by user, then item; ``keys_P`` = user * n_rows + item."""

    keys_P: np.ndarray
    interest_P: np.ndarray
    n_rows: int
    n_users: int

    def top(self, scores_P: np.ndarray, k: int) -> np.ndarray:
        """int64 [U, k] vocabulary rows, best first, -1 where a user has fewer."""
        users_P = self.keys_P // self.n_rows
        order = np.lexsort((self.keys_P, -scores_P, users_P))
        starts = np.searchsorted(users_P, np.arange(self.n_users))
        place_P = np.arange(len(order)) - starts[users_P[order]]
        first = place_P < k
        top_UK = np.full((self.n_users, k), -1, np.int64)
        top_UK[users_P[order][first], place_P[first]] = self.keys_P[order][first] % self.n_rows
        return top_UK


def _pairs(model: InterestModel, evaluation: EvaluationSet, k: int) -> _Pairs:
    """The top k by interest and the history: nothing else can be among the best k of a blend."""
    histories, n_rows = evaluation.histories, model.vocabulary.n_items + 1
    interests_UKD, items_VD = model.encode(histories), model.item_vectors_VD
    top_UK = top_k_items(interests_UKD, items_VD, k)
    users = np.repeat(np.arange(histories.n_users), k)
    known = histories.items > 0
    found = np.where(top_UK.ravel() >= 0, users * n_rows + top_UK.ravel(), -1)
    keys_P = np.unique(np.concatenate([found, histories.user_index[known] * n_rows + histories.items[known]]))
    keys_P = keys_P[keys_P >= 0]
    scores = []
    for start in range(0, len(keys_P), PAIRS_PER_BLOCK):
        block = keys_P[start : start + PAIRS_PER_BLOCK]
        interests_PKD = interests_UKD[torch.from_numpy(block // n_rows)]
        scores.append(torch.einsum("pkd,pd->pk", interests_PKD, items_VD[torch.from_numpy(block % n_rows)]).amax(1))
    return _Pairs(keys_P, torch.cat(scores).numpy(), n_rows, histories.n_users)
