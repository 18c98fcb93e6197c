"""Cross-entropy of a target among the candidates."""

from __future__ import annotations

import torch
from torch import Tensor

from bseq_plugin.losses.chunked import chunked_loss
from bseq_plugin.schema.parts import Candidates, SequenceLoss, Targets


class SoftmaxLoss(SequenceLoss):
    """Softmax cross-entropy, over the whole catalogue or over sampled negatives with logQ correction.

    With sampled candidates every negative logit is lowered by the log of its expected count, which makes the sampled
    loss an estimate of the full one (Bengio and Senecal 2008; Yi et al., RecSys 2019, section 3).
    """

    name = "softmax"

    def forward(self, states_QD: Tensor, targets: Targets, candidates: Candidates) -> Tensor:
        """Scalar; see ``SequenceLoss.forward``."""
        return chunked_loss(_cross_entropy, states_QD, targets, candidates)


def _cross_entropy(positive_S: Tensor, weight_S: Tensor, state_S: Tensor, negative_CN: Tensor) -> tuple[Tensor, Tensor]:
    # A state's negatives are summed once, whatever its number of targets: loss = log(1 + exp(log_negatives - positive))
    largest_C = negative_CN.amax(1).clamp_min(
        torch.finfo(negative_CN.dtype).min
    )  # all struck: -inf - -inf is no number
    total_C = negative_CN.sub_(largest_C[:, None]).exp_().sum(1)
    log_negatives_S = (total_C.log() + largest_C)[state_S]
    loss_S = torch.nn.functional.softplus(log_negatives_S - positive_S)
    pull_S = weight_S * torch.sigmoid(log_negatives_S - positive_S)  # weight x (1 - probability of the target)
    pull_C = torch.zeros_like(total_C).index_add_(0, state_S, pull_S)
    negative_CN *= (pull_C / total_C.clamp_min(torch.finfo(total_C.dtype).tiny))[:, None]
    return (weight_S * loss_S).sum(), -pull_S
