"""What several models, or a model and a baseline, are worth together; weights come from validation.

Shape letters: b users of one block, V items (row 0 = unknown), K interests, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from bseq_plugin.data.sequences import Sequences
from bseq_plugin.data.splits import EvaluationSet
from bseq_plugin.errors import UsageError
from bseq_plugin.evaluation.baselines import Baseline
from bseq_plugin.evaluation.rankers import MAX_BASELINE_USERS, InterestScorer, Ranker
from bseq_plugin.metrics import ranking_metrics, top_k_scores

WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8)
LEAST_SHARE = 1e-5  # of an item that the baseline has nothing to say about: its logarithm must exist


class AveragedScorer:
    """Models that differ by their seed, as one: the mean of their scores, as vectors side by side (K = 1).

    Raises UsageError if a model has several interests: their order means nothing across models.
    """

    def __init__(self, models: Sequence[InterestScorer]) -> None:
        self._models = models
        self.item_vectors_VD = torch.cat([model.item_vectors_VD for model in models], 1) / len(models)

    def encode(self, histories: Sequences) -> Tensor:
        """``interests_B1D``, D = the sum of the models' widths."""
        parts = [model.encode(histories) for model in self._models]
        if any(part.shape[1] != 1 for part in parts):
            raise UsageError("models with several interests can not be averaged; compare them one by one")
        return torch.cat(parts, 2)


def blended_ranker(model: InterestScorer, baseline: Baseline, weight: float) -> Ranker:
    """Items by ``log softmax(interest score) + weight * log(share of the baseline's score)``, best first.

    Both are log probabilities, so that the blend is a weighted product of experts (Hinton, Neural Computation 2002,
    section 1) and the weight does not depend on the scale of either. ``baseline`` is fitted; what it scores 0 or less
    it has no opinion on.
    """
    items_VD = model.item_vectors_VD

    def rank(histories: Sequences, k: int, mask_seen: bool) -> np.ndarray:
        interests_BKD = model.encode(histories)
        excluded = (histories.offsets, histories.items) if mask_seen else None

        def score_block(users: slice) -> Tensor:
            score_bV = (interests_BKD[users] @ items_VD.T).amax(1)
            score_bV[:, 0] = -torch.inf
            share_bV = baseline.scores(histories.take(np.arange(users.start, users.stop))).clamp_min_(0.0)
            share_bV /= share_bV.sum(1, keepdim=True).clamp_min(1e-9)
            return score_bV.log_softmax(1).add_(share_bV.add_(LEAST_SHARE).log_(), alpha=weight)

        return top_k_scores(score_block, histories.n_users, k, excluded, MAX_BASELINE_USERS)

    return rank


def best_weight(
    model: InterestScorer,
    baseline: Baseline,
    validation: EvaluationSet,
    k: int,
    mask_seen: bool,
    weights: Iterable[float] = WEIGHTS,
) -> tuple[float, dict[float, float]]:
    """(the weight of largest NDCG@k, the first of equals; NDCG@k of each)."""
    found = {}
    for weight in weights:
        top_Uk = blended_ranker(model, baseline, weight)(validation.histories, k, mask_seen)
        values = ranking_metrics(top_Uk, validation.target_offsets, validation.target_items, [k])
        found[weight] = float(values[f"ndcg@{k}"].mean())
    return max(found, key=lambda weight: found[weight]), found
