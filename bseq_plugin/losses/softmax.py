"""Cross-entropy of a target among the candidates."""

from __future__ import annotations

import torch
from torch import Tensor

from bseq_plugin.losses.chunked import chunked_loss
from bseq_plugin.schema.parts import Candidates, SequenceLoss, Targets


class SoftmaxLoss(SequenceLoss):
    """Softmax cross-entropy, over the whole catalogue or over sampled negatives with logQ correction.

    A state with several targets has one distribution over (its targets and the other candidates), and the loss is the
    mean of its targets' negative log probabilities: targets compete with each other, so that at the optimum each of n
    has 1 / n. (Left to compete with the rest alone they would be driven towards 1 each, which overfits small logs.)

    With sampled candidates every negative logit is lowered by the log of its expected count, which makes the sampled
    loss an estimate of the full one (Bengio and Senecal 2008; Yi et al., RecSys 2019, section 3).
    """

    name = "softmax"

    def forward(self, states_QD: Tensor, targets: Targets, candidates: Candidates) -> Tensor:
        """Scalar; see ``SequenceLoss.forward``."""
        return chunked_loss(_cross_entropy, states_QD, targets, candidates)


def _cross_entropy(positive_S: Tensor, weight_S: Tensor, state_S: Tensor, negative_CN: Tensor) -> tuple[Tensor, Tensor]:
    # The candidates are summed once a state, whatever its number of targets.
    largest_C = negative_CN.amax(1).scatter_reduce(0, state_S, positive_S, "amax")
    largest_C.clamp_min_(torch.finfo(negative_CN.dtype).min)  # a state without any: -inf - -inf is no number
    shifted_S = positive_S - largest_C[state_S]
    total_C = negative_CN.sub_(largest_C[:, None]).exp_().sum(1).index_add_(0, state_S, shifted_S.exp())
    log_share_S = shifted_S - total_C.log()[state_S]
    weight_C = torch.zeros_like(total_C).index_add_(0, state_S, weight_S)
    negative_CN *= (weight_C / total_C.clamp_min(torch.finfo(total_C.dtype).tiny))[:, None]
    return -(weight_S * log_share_S).sum(), weight_C[state_S] * log_share_S.exp() - weight_S
