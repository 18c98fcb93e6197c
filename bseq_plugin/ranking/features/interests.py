"""Vectors for a ranker that crosses user and item itself.

Shape letters as in ``schema/ranking.py``. An interest is absent where its vector is NaN or zero: all K of a user
without history, some of a user with fewer interests than K.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bseq_plugin.schema.grid import rows_of
from bseq_plugin.schema.ranking import FeatureInputs
from bseq_plugin.schema.ranking_features import RankingFeature


class VectorFeature(RankingFeature):
    """What the vectors share."""

    group = "vectors"
    source = "Covington et al., RecSys 2016"


class UserInterests(VectorFeature):
    """The user side of the two-tower score, every interest of it."""

    name = "user_interests"
    description = "the K interest vectors, each of L2 norm 1, flattened to [K*D]"
    null_rule = "NaN for an absent interest"
    source = "Cen et al., KDD 2020"

    def compute(self, inputs: FeatureInputs) -> Tensor:
        """float32 [N, K * D]."""
        return rows_of(inputs.interest_units_RKD.flatten(1).float(), inputs.request_N)


class InterestMask(VectorFeature):
    """Tells which parts of ``user_interests`` are real."""

    name = "interest_mask"
    description = "1 for each of the K interests that the user has, 0 for an absent one, [K]"
    null_rule = "never NaN"
    source = "Li et al., CIKM 2019"

    def compute(self, inputs: FeatureInputs) -> Tensor:
        """float32 [N, K]."""
        return rows_of(interest_present(inputs).float(), inputs.request_N)


class UserPooled(VectorFeature):
    """One vector for rankers that take only one."""

    name = "user_pooled"
    description = (
        "sum_k a_k I_k over the unit interests the user has, a = softmax_k <I_k, mean_k I_k>, [D]; "
        "the interest itself for K = 1"
    )
    null_rule = "NaN without history"

    def compute(self, inputs: FeatureInputs) -> Tensor:
        """float32 [N, D]."""
        return rows_of(inputs.once(pooled_interest).float(), inputs.request_N)


class ItemVec(VectorFeature):
    """The item side of the two-tower score."""

    name = "item_vec"
    description = "the candidate's item vector e(c), of L2 norm 1, [D]"
    null_rule = "NaN for an unknown item"

    def compute(self, inputs: FeatureInputs) -> Tensor:
        """float32 [N, D]."""
        if inputs.item_units_VD is not None:
            return rows_of(inputs.item_units_VD, inputs.candidate_N)
        return inputs.candidate_units_ND.float()


def interest_present(inputs: FeatureInputs) -> Tensor:
    """bool [R, K]."""
    return torch.isfinite(inputs.interest_units_RKD[..., 0])  # all of a unit vector is finite, or nothing


def mean_interest(inputs: FeatureInputs) -> Tensor:
    """float64 [R, D], mean of the unit interests that a user has; NaN without any."""
    present_RK = interest_present(inputs)
    unit_RKD = torch.where(present_RK[..., None], inputs.interest_units_RKD, 0.0)
    return unit_RKD.sum(1) / present_RK.sum(1, keepdim=True)  # 0/0 is the NaN that a user without interests gets


def pooled_interest(inputs: FeatureInputs) -> Tensor:
    """float64 [R, D], attention of the mean interest over the interests; NaN without any."""
    present_RK = interest_present(inputs)
    unit_RKD = torch.where(present_RK[..., None], inputs.interest_units_RKD, 0.0)
    mean_RD = inputs.once(mean_interest)
    logit_RK = (unit_RKD * mean_RD[:, None]).sum(-1).masked_fill(~present_RK, -torch.inf)
    return (torch.softmax(logit_RK, dim=1)[..., None] * unit_RKD).sum(1)
