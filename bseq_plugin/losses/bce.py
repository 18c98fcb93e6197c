"""Binary cross-entropy of a target and of each candidate, for comparison with older work."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from bseq_plugin.losses.chunked import chunked_loss
from bseq_plugin.schema.parts import Candidates, SequenceLoss, Targets


class BCELoss(SequenceLoss):
    """``-log sigmoid(s_target) - mean over negatives of log(1 - sigmoid(s_negative))`` (SASRec, ICDM 2018, eq. 7).

    Scores are taken as they are: the sampling distribution is not corrected for.
    """

    name = "bce"

    def forward(self, states_QD: Tensor, targets: Targets, candidates: Candidates) -> Tensor:
        """Scalar; see ``SequenceLoss.forward``."""
        if candidates.log_expected_count_N is not None:  # zeros still say "sampled", without moving the logits
            candidates = replace(candidates, log_expected_count_N=torch.zeros_like(candidates.log_expected_count_N))
        return chunked_loss(_binary_cross_entropy, states_QD, targets, candidates)


def _binary_cross_entropy(
    positive_S: Tensor, weight_S: Tensor, state_S: Tensor, negative_CN: Tensor
) -> tuple[Tensor, Tensor]:
    weight_C = torch.zeros_like(negative_CN[:, 0]).index_add_(0, state_S, weight_S)
    share_C1 = (weight_C / (negative_CN > -torch.inf).sum(1).clamp_min(1))[:, None]
    loss = (weight_S * F.softplus(-positive_S)).sum() + (F.softplus(negative_CN) * share_C1).sum()
    negative_CN.sigmoid_().mul_(share_C1)
    return loss, weight_S * (torch.sigmoid(positive_S) - 1.0)
