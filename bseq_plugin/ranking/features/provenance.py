"""How a candidate was found, and how good what is known of it is.

Shape letters as in ``schema/ranking.py``.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from bseq_plugin.ranking.features.history import SECOND_US
from bseq_plugin.ranking.features.interests import interest_present, mean_interest
from bseq_plugin.schema.grid import on_grid
from bseq_plugin.schema.ranking import FeatureInputs
from bseq_plugin.schema.ranking_features import CATEGORY, VERSION, RankingFeature


class RetrievalFeature(RankingFeature):
    """What retrieval said of the candidate: the columns of the candidates table."""

    group = "retrieval"
    null_rule = "NaN if the candidates do not say"
    source = "Cen et al., KDD 2020"
    column: ClassVar[str]

    def compute(self, inputs: FeatureInputs) -> Tensor:
        """float32 [N]."""
        given_N: Tensor | None = getattr(inputs, f"retrieval_{self.column}_N")
        return torch.full((inputs.candidate_N.shape[0],), torch.nan) if given_N is None else given_N.clone()


class RetrievalRank(RetrievalFeature):
    """The place retrieval gave it."""

    name = "retrieval_rank"
    column = "rank"
    description = "the candidates' column rank"
    unit = "place, from 1"


class RetrievalScore(RetrievalFeature):
    """The score retrieval ranked it by."""

    name = "retrieval_score"
    column = "score"
    description = "the candidates' column score"
    unit = "as the retriever scores"


class RetrievalInterest(RetrievalFeature):
    """Categorical: the interest that found it."""

    name = "retrieval_interest"
    column = "interest"
    description = "the candidates' column interest, 0..K-1"
    unit = CATEGORY
    null_rule = "NaN if the candidates do not say, or for a popular item"


class NInterestsHit(RetrievalFeature):
    """Several interests that find one item speak for it."""

    name = "n_interests_hit"
    column = "n_interests"
    description = "the candidates' column n_interests: how many of the user's interests retrieved it"
    unit = "interests"


class QualityFeature(RankingFeature):
    """What tells a ranker how far to trust the rest."""

    group = "quality"
    null_rule = "never NaN"
    source = "Pancha et al., KDD 2022"


class InterestAgeSecs(QualityFeature):
    """Interests computed yesterday do not know today."""

    name = "interest_age_secs"
    description = "at minus the time of the newest event that the interests know"
    unit = "seconds"
    null_rule = "NaN without interests"

    def compute(self, inputs: FeatureInputs) -> Tensor:
        """float32 [N]."""
        if inputs.interests_at_R is None:
            return torch.full((inputs.candidate_N.shape[0],), torch.nan)
        age_R = (inputs.at_R - inputs.interests_at_R).double() / SECOND_US
        return torch.where(inputs.interests_at_R >= 0, age_R, torch.nan).float()[inputs.request_N]


class EncoderVersion(QualityFeature):
    """Categorical: vectors of two encoders are not comparable."""

    name = "encoder_version"
    description = "a number below 2^24 made of the digest of the model that the vectors come from"
    unit = VERSION
    null_rule = "NaN for a model without a digest"

    def compute(self, inputs: FeatureInputs) -> Tensor:
        """float32 [N]."""
        version = torch.nan if inputs.model_version is None else float(inputs.model_version)
        return torch.full((inputs.candidate_N.shape[0],), version)


class IsColdUser(QualityFeature):
    """Nothing is known of the user."""

    name = "is_cold_user"
    description = "1 for a user without interests (no event of a known item), else 0"
    unit = "0 or 1"

    def compute(self, inputs: FeatureInputs) -> Tensor:
        """float32 [N]."""
        return (~interest_present(inputs).any(1)).float()[inputs.request_N]


class IsColdItem(QualityFeature):
    """Nothing is known of the item."""

    name = "is_cold_item"
    description = "1 for an item that the model does not know, else 0"
    unit = "0 or 1"

    def compute(self, inputs: FeatureInputs) -> Tensor:
        """float32 [N]."""
        return (inputs.candidate_N == 0).float()


class InterestDispersion(QualityFeature):
    """Whether the user wants one thing or many."""

    name = "interest_dispersion"
    description = "1 - ||mean_k I_k|| over the unit interests the user has: 0 if they agree"
    unit = "[0, 1]"
    null_rule = "NaN without history"
    source = "Cen et al., KDD 2020"

    def compute(self, inputs: FeatureInputs) -> Tensor:
        """float32 [N]."""
        mean_RD = on_grid(inputs.once(mean_interest))
        return (1 - (mean_RD * mean_RD).sum(1).sqrt()).clamp(0.0, 1.0).float()[inputs.request_N]
