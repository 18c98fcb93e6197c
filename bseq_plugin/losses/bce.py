"""Binary cross-entropies of a target and of each negative, for comparison with older work."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from bseq_plugin.losses.chunked import Terms, chunked_loss
from bseq_plugin.losses.precision import MatmulLoss
from bseq_plugin.schema.losses import Negatives, Targets
from bseq_plugin.schema.options import PartOptions


class BCELoss(MatmulLoss):
    """Binary cross-entropy ``-log sigmoid(s_target) - mean over negatives of log(1 - sigmoid(s_negative))`` (SASRec,
    ICDM 2018, eq. 7).

    Scores are taken as they are: the sampling distribution is not corrected for.
    """

    name = "bce"

    def forward(self, states_QD: Tensor, targets: Targets, negatives: Negatives) -> Tensor:
        """Return the scalar loss; see ``SequenceLoss.forward``."""
        return chunked_loss(_binary_cross_entropy, states_QD, targets, _uncorrected(negatives), self.matmul)


class GeneralisedBCEOptions(PartOptions):
    """Options of the ``gbce`` loss."""

    calibration: float = Field(
        0.75, ge=0.0, le=1.0, description="t: 0 is binary cross-entropy, 1 gives calibrated probabilities"
    )


class GeneralisedBCELoss(MatmulLoss[GeneralisedBCEOptions]):
    """gBCE: binary cross-entropy with the target's probability raised to beta (gSASRec, RecSys 2023, section 5).

    beta = 1 - t (1 - a), with a the sampled share of the catalogue and t the calibration; the sum over a target and its
    n negatives is divided by n + 1, as in the paper. The share is estimated from the negatives' expected counts: n of
    V for uniform negatives, 1 for a whole catalogue.

    The sigmoid is taken of the score less log(n / beta), one constant for all items of a state, which changes no
    ranking. Where scores begin, near 0, a target then pulls exactly as hard as its n negatives push: the odds of each
    are beta to n (as a rare class is initialised in Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017,
    section 4.1). Without it the negatives push n / beta times harder: the first steps move all rows one way, away from
    the mean state, row-wise Adagrad keeps the squares of such gradients, and hardly anything is learned afterwards.
    """

    name = "gbce"

    def forward(self, states_QD: Tensor, targets: Targets, negatives: Negatives) -> Tensor:
        """Return the scalar loss; see ``SequenceLoss.forward``."""
        beta = 1.0 - self.options.calibration * (1.0 - _sampled_share(negatives))
        logit_loss = partial(_generalised_binary_cross_entropy, beta=beta)
        return chunked_loss(logit_loss, states_QD, targets, _uncorrected(negatives), self.matmul)


def _sampled_share(negatives: Negatives) -> float:
    """Return N / V; V is estimated by the sum of 1 / expected count over the sample."""
    if negatives.log_expected_count_N is None:
        return 1.0
    return min(1.0, len(negatives.ids_N) / float((-negatives.log_expected_count_N).exp().sum()))


def _uncorrected(negatives: Negatives) -> Negatives:
    """Return the negatives with a correction of zero, which still says "sampled" without moving the logits."""
    if negatives.log_expected_count_N is None:
        return negatives
    return replace(negatives, log_expected_count_N=torch.zeros_like(negatives.log_expected_count_N))


def _binary_cross_entropy(positive_S: Tensor, weight_S: Tensor, state_S: Tensor, negative_NC: Tensor) -> Terms:
    """A ``LogitLoss``: the target's term and the mean of its negatives' terms."""
    weight_C, n_negatives_C = _of_states(weight_S, state_S, negative_NC)
    return _weighted_terms(positive_S, weight_S, negative_NC, weight_C / n_negatives_C.clamp_min(1))


def _generalised_binary_cross_entropy(
    positive_S: Tensor, weight_S: Tensor, state_S: Tensor, negative_NC: Tensor, beta: float
) -> Terms:
    """A ``LogitLoss``: the mean of the target's term times beta and its negatives' terms, of scores less the offset."""
    weight_C, n_negatives_C = _of_states(weight_S, state_S, negative_NC)
    offset_C = (n_negatives_C.clamp_min(1).to(positive_S.dtype) / beta).log()
    share_C = weight_C / (1.0 + n_negatives_C)
    negative_NC -= offset_C
    positive_S = positive_S - offset_C[state_S]
    return _weighted_terms(positive_S, beta * weight_S / (1.0 + n_negatives_C[state_S]), negative_NC, share_C)


def _of_states(weight_S: Tensor, state_S: Tensor, negative_NC: Tensor) -> tuple[Tensor, Tensor]:
    """Return, for each state, the sum of its targets' weights and the number of its negatives."""
    weight_C = torch.zeros_like(negative_NC[0]).index_add_(0, state_S, weight_S)
    return weight_C, (negative_NC > -torch.inf).sum(0)


def _weighted_terms(positive_S: Tensor, weight_S: Tensor, negative_NC: Tensor, share_C: Tensor) -> Terms:
    """Return what a ``LogitLoss`` does, for targets of weight ``weight_S`` and negatives of weight ``share_C`` each."""
    loss = (weight_S * F.softplus(-positive_S)).sum() + (F.softplus(negative_NC) * share_C).sum()
    negative_NC.sigmoid_()
    return loss, weight_S * (torch.sigmoid(positive_S) - 1.0), share_C
