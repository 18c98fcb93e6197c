"""Cosines between a candidate and the interests of its user.

Shape letters as in ``schema/ranking.py``. e(.) is an L2-normalised item vector, I_k an L2-normalised interest, c the
candidate.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from bseq_plugin.ranking.features.interests import pooled_interest
from bseq_plugin.schema.grid import unit_vectors
from bseq_plugin.schema.options import PartOptions
from bseq_plugin.schema.part import OptionsT_co
from bseq_plugin.schema.ranking import FeatureInputs
from bseq_plugin.schema.ranking_features import CATEGORY, RankingFeature


class SimilarityFeature(RankingFeature[OptionsT_co]):
    """What the cosines to interests share."""

    group = "similarity"
    unit = "cosine in [-1, 1]"
    null_rule = "NaN without history or for an unknown item"
    source = "Cen et al., KDD 2020"


class SimMax(SimilarityFeature):
    """What the retriever ranks by, as a cosine."""

    name = "sim_max"
    description = "max_k <I_k, e(c)>"

    def compute(self, inputs: FeatureInputs) -> Tensor:
        """float32 [N]."""
        return finite_or_nan(inputs.once(_filled).amax(-1))


class SimMean(SimilarityFeature):
    """How well the candidate suits the user as a whole."""

    name = "sim_mean"
    description = "mean over the user's interests of <I_k, e(c)>"

    def compute(self, inputs: FeatureInputs) -> Tensor:
        """float32 [N]."""
        return torch.nanmean(inputs.cosine_NK, dim=1).float()


class SimTop2Gap(SimilarityFeature):
    """Whether one interest alone speaks for the candidate."""

    name = "sim_top2_gap"
    description = "the largest minus the second largest <I_k, e(c)>"
    unit = "difference of cosines in [0, 2]"
    null_rule = "NaN for a user with fewer than two interests, without history, or for an unknown item"

    def compute(self, inputs: FeatureInputs) -> Tensor:
        """float32 [N]."""
        filled_NK = inputs.once(_filled)
        if filled_NK.shape[1] < 2:
            return torch.full((filled_NK.shape[0],), torch.nan)
        top_N2 = filled_NK.topk(2, dim=1).values
        return finite_or_nan(top_N2[:, 0] - top_N2[:, 1])


class SimArgmaxInterest(SimilarityFeature):
    """Categorical: which interest the candidate belongs to."""

    name = "sim_argmax_interest"
    description = "the k of the largest <I_k, e(c)>, 0..K-1, the lowest of equals"
    unit = CATEGORY

    def compute(self, inputs: FeatureInputs) -> Tensor:
        """float32 [N]."""
        filled_NK = inputs.once(_filled)
        best_N = filled_NK.amax(-1)
        # argmax may return any of equal values, a different one in another block
        index_K = torch.arange(filled_NK.shape[1], dtype=filled_NK.dtype)
        first_N = torch.where(filled_NK == best_N[:, None], index_K, torch.inf).amin(-1)
        return torch.where(torch.isfinite(best_N), first_N, torch.nan).float()


class TauOptions(PartOptions):
    """Options of a softmax over cosines."""

    tau: float = Field(1.0, gt=0, description="temperature: smaller is sharper")


class SimSoft(SimilarityFeature[TauOptions]):
    """Label-aware attention over the interests."""

    name = "sim_soft"
    description = "sum_k softmax_k(<I_k, e(c)> / tau) <I_k, e(c)>, option tau = 1"

    def compute(self, inputs: FeatureInputs) -> Tensor:
        """float32 [N]."""
        weight_NK = torch.softmax(inputs.once(_filled) / self.options.tau, dim=1)  # all -inf gives NaN
        return (weight_NK * inputs.cosine_NK.nan_to_num(nan=0.0)).sum(1).clamp(-1.0, 1.0).float()


class SimPooled(SimilarityFeature):
    """The cosine to ``user_pooled``."""

    name = "sim_pooled"
    description = "cosine of user_pooled and e(c)"

    def compute(self, inputs: FeatureInputs) -> Tensor:
        """float32 [N]."""
        return inputs.cosines(unit_vectors(inputs.once(pooled_interest))[:, None])[:, 0].float()


class SimPerInterest(SimilarityFeature):
    """Every interest's cosine, for rankers that combine them themselves."""

    name = "sim_per_interest"
    description = "<I_k, e(c)> for each k, [K]"
    null_rule = "NaN for an absent interest or an unknown item"

    def compute(self, inputs: FeatureInputs) -> Tensor:
        """float32 [N, K]."""
        return inputs.cosine_NK.float()


def finite_or_nan(values: Tensor) -> Tensor:
    """float32, NaN for what is infinite."""
    return torch.where(torch.isfinite(values), values, torch.nan).float()


def _filled(inputs: FeatureInputs) -> Tensor:
    """float64 [N, K], cosines with -inf for what is missing."""
    return inputs.cosine_NK.nan_to_num(nan=-torch.inf)
