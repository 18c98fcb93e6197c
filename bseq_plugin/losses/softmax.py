"""Cross-entropy of a target among its negatives."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, finfo, ones_like, softmax, zeros_like

from bseq_plugin.losses.chunked import Terms, chunked_loss
from bseq_plugin.losses.precision import MatmulLoss
from bseq_plugin.schema.losses import Negatives, Targets
from bseq_plugin.schema.options import PartOptions

FEW = 64  # negatives among which one is looked for that tells the sum of all exponentials
LOST = 1e-30  # a share up to this may be less precise than its type, or 0, and tells nothing


class SoftmaxOptions(PartOptions):
    """Options of the ``softmax`` loss."""

    label_smoothing: float = Field(
        0.0, ge=0.0, lt=1.0, description="share of a target's probability that is spread evenly over the catalogue"
    )


class SoftmaxLoss(MatmulLoss[SoftmaxOptions]):
    """Softmax cross-entropy, over the whole catalogue or over sampled negatives with logQ correction.

    A state with several targets has one distribution over (its targets and the other negatives), and the loss is the
    mean of its targets' negative log probabilities: targets compete with each other, so that at the optimum each of n
    has 1 / n. (Left to compete with the rest alone they would be driven towards 1 each, which overfits small logs.)

    With sampled negatives every negative logit is lowered by the log of its expected count, which makes the sampled
    loss an estimate of the full one (Bengio and Senecal 2008; Yi et al., RecSys 2019, section 3).

    ``label_smoothing`` e (Szegedy et al., CVPR 2016, section 7) aims at 1 - e for the target and e / V for each item of
    the catalogue; from sampled negatives the mean over the catalogue is estimated.
    """

    name = "softmax"

    def forward(self, states_QD: Tensor, targets: Targets, negatives: Negatives) -> Tensor:
        """Return the scalar loss; see ``SequenceLoss.forward``."""
        loss = chunked_loss(_cross_entropy, states_QD, targets, negatives, self.matmul, narrow=True)
        if self.options.label_smoothing and len(targets.ids_S):
            loss = loss + self.options.label_smoothing * _above_average(states_QD, targets, negatives)
        return loss


def _cross_entropy(positive_S: Tensor, weight_S: Tensor, state_S: Tensor, negative_NC: Tensor) -> Terms:
    # The negatives are summed once a state, whatever its number of targets.
    lowest = finfo(positive_S.dtype).min  # a state without any negative: -inf - -inf is no number
    negative_C = _largest(negative_NC).to(positive_S.dtype).clamp_min_(lowest)
    largest_C = negative_C.scatter_reduce(0, state_S, positive_S, "amax")
    shifted_S = positive_S - largest_C.index_select(0, state_S)
    unit_C = (negative_C - largest_C).exp_()
    negative_total_C, factor_C = _exponentials(negative_NC, negative_C)
    total_C = (negative_total_C * unit_C).index_add_(0, state_S, shifted_S.exp())
    log_share_S = shifted_S - total_C.log().index_select(0, state_S)
    weight_C = zeros_like(total_C).index_add_(0, state_S, weight_S)
    d_positive_S = weight_C.index_select(0, state_S) * log_share_S.exp() - weight_S
    factor_C *= unit_C * weight_C / total_C.clamp_min(finfo(total_C.dtype).tiny)
    return -(weight_S * log_share_S).sum(), d_positive_S, factor_C


def _exponentials(logits_NC: Tensor, largest_C: Tensor) -> tuple[Tensor, Tensor]:
    """Exponentiate the entries in place up to a factor a state; return (sum of exp(logit - largest), the factor)."""
    if not logits_NC.T.is_contiguous():
        total_C = logits_NC.sub_(largest_C).exp_().sum(0)
        return total_C, ones_like(total_C)
    # State by state torch has one pass for it, twice as fast as three. Its sum is found again in an entry that is known
    # before and after, here the largest of the first few. (In bfloat16 that is off by 2^-8 at most, an eighth of
    # what rounding a logit of 8 does to its exponential.)
    few_KC = logits_NC[:FEW]
    logit_C = few_KC.to(largest_C.dtype).amax(0)
    softmax(logits_NC.T, 1, out=logits_NC.T)
    share_C = few_KC.to(largest_C.dtype).amax(0)
    total_C = (logit_C - largest_C).exp_() / share_C
    telling_C = share_C > LOST
    if not bool(telling_C.all()):
        total_C = torch.where(telling_C, total_C, _total_by_largest(logits_NC, largest_C))
    return total_C, total_C.clone()


def _total_by_largest(shares_NC: Tensor, largest_C: Tensor) -> Tensor:
    """Return the sums of exponentials, from the largest shares; without any negative it is 0, as are the entries."""
    share_C = _largest(shares_NC).to(largest_C.dtype)
    none_C = (share_C != share_C) & (largest_C == finfo(largest_C.dtype).min)  # 0 / 0; another NaN is the caller's
    shares_NC[:, none_C] = 0.0
    return share_C.masked_fill_(none_C, torch.inf).reciprocal_()


def _largest(logits_NC: Tensor) -> Tensor:
    """Return the largest entry of each state, ``amax(0)``."""
    if logits_NC.dtype != torch.bfloat16:
        return logits_NC.amax(0)
    # Positive numbers are in the order of their bits, and torch compares integers seven times as fast as bfloat16.
    largest_C = logits_NC.view(torch.int16).amax(0).view(torch.bfloat16)
    below_C = largest_C < 0
    if bool(below_C.any()):
        largest_C[below_C] = logits_NC[:, below_C].amax(0)
    return largest_C


def _above_average(states_QD: Tensor, targets: Targets, negatives: Negatives) -> Tensor:
    """Return the weighted mean of a target's score minus the catalogue's mean: what smoothing adds, per unit."""
    if negatives.log_expected_count_N is None:
        average_D = negatives.vectors_ND.mean(0)
    else:
        weights_N = (-negatives.log_expected_count_N).exp()
        average_D = (weights_N / weights_N.sum()) @ negatives.vectors_ND
    above_S = (states_QD[targets.state_S] * (targets.vectors_SD - average_D)).sum(1)
    return (targets.weights_S * above_S).sum() / targets.weights_S.sum()
