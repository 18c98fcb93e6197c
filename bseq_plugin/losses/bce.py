"""Binary cross-entropies of a target and of each negative, for comparison with older work."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from bseq_plugin.losses.chunked import chunked_loss
from bseq_plugin.losses.options import MatmulLoss, MatmulOptions
from bseq_plugin.schema.losses import Negatives, Targets


class BCELoss(MatmulLoss):
    """Binary cross-entropy ``-log sigmoid(s_target) - mean over negatives of log(1 - sigmoid(s_negative))`` (SASRec,
    ICDM 2018, eq. 7).

    Scores are taken as they are: the sampling distribution is not corrected for.
    """

    name = "bce"

    def forward(self, states_QD: Tensor, targets: Targets, negatives: Negatives) -> Tensor:
        """Return the scalar loss; see ``SequenceLoss.forward``."""
        return chunked_loss(_binary_cross_entropy, states_QD, targets, _uncorrected(negatives), self.options.matmul)


class GeneralisedBCEOptions(MatmulOptions):
    """Options of the ``gbce`` loss."""

    calibration: float = Field(
        0.75, ge=0.0, le=1.0, description="t: 0 is binary cross-entropy, 1 gives calibrated probabilities"
    )


class GeneralisedBCELoss(MatmulLoss[GeneralisedBCEOptions]):
    """gBCE: binary cross-entropy with the target's probability raised to beta (gSASRec, RecSys 2023, section 5).

    beta = 1 - t (1 - a), with a the sampled share of the catalogue and t the calibration; the sum over targets and
    negatives is divided by their number, as in the paper. The share is estimated from the negatives' expected counts:
    n of V for uniform negatives, 1 for a whole catalogue.
    """

    name = "gbce"

    def forward(self, states_QD: Tensor, targets: Targets, negatives: Negatives) -> Tensor:
        """Return the scalar loss; see ``SequenceLoss.forward``."""
        beta = 1.0 - self.options.calibration * (1.0 - _sampled_share(negatives))
        logit_loss = partial(_binary_cross_entropy, exponent=beta, summed=True)
        return chunked_loss(logit_loss, states_QD, targets, _uncorrected(negatives), self.options.matmul)


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


def _binary_cross_entropy(
    positive_S: Tensor,
    weight_S: Tensor,
    state_S: Tensor,
    negative_NC: Tensor,
    exponent: float = 1.0,
    summed: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    weight_C = torch.zeros_like(negative_NC[0]).index_add_(0, state_S, weight_S)
    n_negatives_C = (negative_NC > -torch.inf).sum(0)
    if summed:  # one mean over target and negatives
        n_terms_C = 1.0 + n_negatives_C
        weight_S = exponent * weight_S / n_terms_C[state_S]
    else:  # the target, and the mean over negatives
        n_terms_C = n_negatives_C.clamp_min(1)
    share_C = weight_C / n_terms_C
    loss = (weight_S * F.softplus(-positive_S)).sum() + (F.softplus(negative_NC) * share_C).sum()
    negative_NC.sigmoid_()
    return loss, weight_S * (torch.sigmoid(positive_S) - 1.0), share_C
