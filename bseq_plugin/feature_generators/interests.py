"""Vectors for a ranker that crosses user and item itself.

Shape letters as in ``schema/ranking.py``. An interest is absent where its vector is NaN or zero: all K of a user
without history, some of a user with fewer interests than K.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bseq_plugin.schema.parts import RankingFeature
from bseq_plugin.schema.ranking import FeatureInputs


class UserInterests(RankingFeature):
    """The user side of the two-tower score, every interest of it."""

    name = "user_interests"
    description = "the K interest vectors, each of L2 norm 1, flattened to [K*D]; NaN for an absent interest"

    def compute(self, inputs: FeatureInputs) -> Tensor:
        """float32 [N, K * D]."""
        return inputs.interest_units_RKD.flatten(1).float()[inputs.request_N]


class InterestMask(RankingFeature):
    """Tells which parts of ``user_interests`` are real."""

    name = "interest_mask"
    description = "1 for each of the K interests that the user has, 0 for an absent one; never NaN"

    def compute(self, inputs: FeatureInputs) -> Tensor:
        """float32 [N, K]."""
        return interest_present(inputs).float()[inputs.request_N]


class UserPooled(RankingFeature):
    """One vector for rankers that take only one."""

    name = "user_pooled"
    description = (
        "sum_k a_k I_k over the unit interests the user has, a = softmax_k <I_k, mean_k I_k>, [D]; "
        "the interest itself for K = 1; NaN without history"
    )

    def compute(self, inputs: FeatureInputs) -> Tensor:
        """float32 [N, D]."""
        return pooled_interest(inputs).float()[inputs.request_N]


class ItemVec(RankingFeature):
    """The item side of the two-tower score."""

    name = "item_vec"
    description = "the candidate's item vector e(c), of L2 norm 1, [D]; NaN for an item unknown to the model"

    def compute(self, inputs: FeatureInputs) -> Tensor:
        """float32 [N, D]."""
        return inputs.candidate_units_ND.float()


def interest_present(inputs: FeatureInputs) -> Tensor:
    """bool [R, K]."""
    return torch.isfinite(inputs.interest_units_RKD[..., 0])  # all of a unit vector is finite, or nothing


def pooled_interest(inputs: FeatureInputs) -> Tensor:
    """float64 [R, D], attention of the mean interest over the interests; NaN without any."""
    present_RK = interest_present(inputs)
    unit_RKD = torch.where(present_RK[..., None], inputs.interest_units_RKD, 0.0)
    mean_RD = unit_RKD.sum(1) / present_RK.sum(1, keepdim=True)  # 0/0 is the NaN that a user without interests gets
    logit_RK = (unit_RKD * mean_RD[:, None]).sum(-1).masked_fill(~present_RK, -torch.inf)
    return (torch.softmax(logit_RK, dim=1)[..., None] * unit_RKD).sum(1)
