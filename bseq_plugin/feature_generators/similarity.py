"""Cosines between a candidate and its user: to the interests, and to the events of the history.

Shape letters as in ``schema/ranking.py``. e(.) is an L2-normalised item vector, I_k an L2-normalised interest, h_j an
event strictly before ``at``, c the candidate. Events of items unknown to the model have no vector and are passed over.
Source: Covington et al., RecSys 2016 and Grbovic & Cheng, KDD 2018 (similarity to history); Cen et al., KDD 2020
(several interests, label-aware attention).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bseq_plugin.feature_generators.interests import pooled_interest
from bseq_plugin.schema.parts import RankingFeature
from bseq_plugin.schema.ranking import FeatureInputs, cosine, on_grid, unit_vectors


class SimMax(RankingFeature):
    """What the retriever ranks by, as a cosine."""

    name = "sim_max"
    description = "max_k <I_k, e(c)>, a cosine in [-1, 1]; NaN without history or for an unknown item"

    def compute(self, inputs: FeatureInputs) -> Tensor:
        """float32 [N]."""
        return _finite_or_nan(_filled(inputs).amax(-1))


class SimMean(RankingFeature):
    """How well the candidate suits the user as a whole."""

    name = "sim_mean"
    description = (
        "mean over the user's interests of <I_k, e(c)>, in [-1, 1]; NaN without history or for an unknown item"
    )

    def compute(self, inputs: FeatureInputs) -> Tensor:
        """float32 [N]."""
        return torch.nanmean(inputs.cosine_NK, dim=1).float()


class SimTop2Gap(RankingFeature):
    """Whether one interest alone speaks for the candidate."""

    name = "sim_top2_gap"
    description = (
        "the largest minus the second largest <I_k, e(c)>, in [0, 2]; NaN for a user with fewer than two interests, "
        "without history, or for an unknown item"
    )

    def compute(self, inputs: FeatureInputs) -> Tensor:
        """float32 [N]."""
        filled_NK = _filled(inputs)
        if filled_NK.shape[1] < 2:
            return torch.full((filled_NK.shape[0],), torch.nan)
        top_N2 = filled_NK.topk(2, dim=1).values
        return _finite_or_nan(top_N2[:, 0] - top_N2[:, 1])


class SimArgmaxInterest(RankingFeature):
    """Categorical: which interest the candidate belongs to."""

    name = "sim_argmax_interest"
    description = (
        "the k of the largest <I_k, e(c)>, 0..K-1, the lowest of equals; NaN without history or for an unknown item"
    )

    def compute(self, inputs: FeatureInputs) -> Tensor:
        """float32 [N]."""
        filled_NK = _filled(inputs)
        best_N = filled_NK.amax(-1)
        # argmax may return any of equal values, a different one in another block
        index_K = torch.arange(filled_NK.shape[1], dtype=filled_NK.dtype)
        first_N = torch.where(filled_NK == best_N[:, None], index_K, torch.inf).amin(-1)
        return torch.where(torch.isfinite(best_N), first_N, torch.nan).float()


class SimSoft(RankingFeature):
    """Label-aware attention over the interests; subclass it with another ``name`` and ``tau`` for a sharper one."""

    name = "sim_soft"
    description = (
        "sum_k softmax_k(<I_k, e(c)> / tau) <I_k, e(c)>, tau = 1, in [-1, 1]; "
        "NaN without history or for an unknown item"
    )
    tau: ClassVar[float] = 1.0

    def compute(self, inputs: FeatureInputs) -> Tensor:
        """float32 [N]."""
        weight_NK = torch.softmax(_filled(inputs) / self.tau, dim=1)  # all -inf gives NaN
        return (weight_NK * inputs.cosine_NK.nan_to_num(nan=0.0)).sum(1).clamp(-1.0, 1.0).float()


class SimPooled(RankingFeature):
    """The cosine to ``user_pooled``."""

    name = "sim_pooled"
    description = "cosine of user_pooled and e(c), in [-1, 1]; NaN without history or for an unknown item"

    def compute(self, inputs: FeatureInputs) -> Tensor:
        """float32 [N]."""
        unit_RD = unit_vectors(pooled_interest(inputs))
        return cosine(unit_RD[inputs.request_N], inputs.candidate_units_ND).float()


class SimPerInterest(RankingFeature):
    """Every interest's cosine, for rankers that combine them themselves."""

    name = "sim_per_interest"
    description = "<I_k, e(c)> for each k, [K], in [-1, 1]; NaN for an absent interest or an unknown item"

    def compute(self, inputs: FeatureInputs) -> Tensor:
        """float32 [N, K]."""
        return inputs.cosine_NK.float()


class SimLast1(RankingFeature):
    """Nearness to what the user did last."""

    name = "sim_last1"
    description = (
        "<e(h), e(c)> for the latest event h of a known item, in [-1, 1]; NaN without one or for an unknown item"
    )

    def compute(self, inputs: FeatureInputs) -> Tensor:
        """float32 [N]."""
        return _mean_cosine(inputs, latest=1)


class SimLast3Mean(RankingFeature):
    """Nearness to what the user is about."""

    name = "sim_last3_mean"
    description = (
        "mean of <e(h_j), e(c)> over the latest three (or fewer) events of known items, in [-1, 1]; "
        "NaN without any or for an unknown item"
    )

    def compute(self, inputs: FeatureInputs) -> Tensor:
        """float32 [N]."""
        return _mean_cosine(inputs, latest=3)


class HistSimMax(RankingFeature):
    """Whether the history holds anything like the candidate; 1 if it holds the candidate itself."""

    name = "hist_sim_max"
    description = "max_j <e(h_j), e(c)> over the history, in [-1, 1]; NaN without known history or for an unknown item"

    def compute(self, inputs: FeatureInputs) -> Tensor:
        """float32 [N]."""
        result_N = torch.full((inputs.candidate_N.shape[0],), torch.nan)
        for group in pair_groups(inputs):
            best_gn = _finite_or_nan(group.cosine_gnL.nan_to_num(nan=-torch.inf).amax(-1))
            result_N[group.row_gn[group.real_gn]] = best_gn[group.real_gn]
        return result_N


class HistSimMean(RankingFeature):
    """Nearness to the whole history that was read."""

    name = "hist_sim_mean"
    description = "mean_j <e(h_j), e(c)> over the history, in [-1, 1]; NaN without known history or for an unknown item"

    def compute(self, inputs: FeatureInputs) -> Tensor:
        """float32 [N]."""
        return _mean_cosine(inputs, latest=None)


@dataclass(frozen=True)
class PairGroup:
    """Candidates x history of g requests of like size, padded to n rows and L events.

    Attributes:
        row_gn: int64, candidate rows (0..N-1); only those with ``real_gn`` count.
        real_gn: bool, False for padding.
        event_gL: int64, events (0..T-1), 0 for padding.
        cosine_gnL: float64, NaN for padding, for unknown items and for unknown candidates.
    """

    row_gn: Tensor
    real_gn: Tensor
    event_gL: Tensor
    cosine_gnL: Tensor


def pair_groups(inputs: FeatureInputs) -> Iterator[PairGroup]:
    """Cosines of every candidate row with every event of its request; requests without history are left out.

    Requests are batched with those whose counts share the powers of two, so that padding costs less than a factor of
    four and a matrix product does the work, however many requests there are.
    """
    order_N = torch.argsort(inputs.request_N, stable=True)
    rows_R = torch.bincount(inputs.request_N, minlength=inputs.at_R.shape[0])
    first_R = rows_R.cumsum(0) - rows_R
    used = (rows_R > 0) & (inputs.lengths_R > 0)
    bucket_R = 64 * _log2(rows_R) + _log2(inputs.lengths_R)
    for bucket in torch.bincount(bucket_R[used]).nonzero().flatten():
        members_g = torch.nonzero(used & (bucket_R == bucket)).flatten()
        place_gn, real_gn = _padded(first_R[members_g], rows_R[members_g])
        event_gL, is_event_gL = _padded(inputs.offsets_R1[:-1][members_g], inputs.lengths_R[members_g])
        row_gn = order_N[place_gn]
        events_gLD = torch.where(is_event_gL[..., None], inputs.history_units_TD[event_gL], torch.nan)
        candidates_gnD = inputs.candidate_units_ND[row_gn]
        cosine_gnL = torch.bmm(candidates_gnD, events_gLD.transpose(1, 2)).clamp_(-1.0, 1.0)
        yield PairGroup(row_gn, real_gn, event_gL, cosine_gnL)


def _padded(starts_g: Tensor, lengths_g: Tensor) -> tuple[Tensor, Tensor]:
    """``(places [g, longest], real [g, longest])``: start, start + 1, ... of each; 0 where not real."""
    step = torch.arange(int(lengths_g.max()))
    real = step < lengths_g[:, None]
    return torch.where(real, starts_g[:, None] + step, 0), real


def _log2(counts: Tensor) -> Tensor:
    """int64, the power of two at or above; 0 for 0 and 1."""
    return counts.clamp_min(1).double().log2().ceil().long()


def _filled(inputs: FeatureInputs) -> Tensor:
    """float64 [N, K], cosines with -inf for what is missing."""
    return inputs.cosine_NK.nan_to_num(nan=-torch.inf)


def _finite_or_nan(values: Tensor) -> Tensor:
    return torch.where(torch.isfinite(values), values, torch.nan).float()


def _mean_cosine(inputs: FeatureInputs, latest: int | None) -> Tensor:
    """float32 [N], mean cosine over the ``latest`` events of known items: the inner product with their mean vector."""
    unit_TD = inputs.history_units_TD
    known_T = torch.isfinite(unit_TD[:, 0])  # all of a unit vector is finite, or nothing
    if latest is not None:
        seen_T1 = torch.nn.functional.pad(known_T.long().cumsum(0), (1, 0))
        later_T = seen_T1[inputs.offsets_R1[1:]][inputs.request_T] - seen_T1[1:]  # known events after this one
        known_T = known_T & (later_T < latest)
    request_T = inputs.request_T[known_T]
    # sums of grid vectors are exact in float64, so the order of addition can't show
    sum_RD = torch.zeros(inputs.at_R.shape[0], unit_TD.shape[1], dtype=torch.float64)
    sum_RD.index_add_(0, request_T, unit_TD[known_T])
    count_R = torch.bincount(request_T, minlength=inputs.at_R.shape[0])
    mean_RD = on_grid(sum_RD / count_R[:, None])  # 0/0 is the NaN of a request without known history
    return cosine(mean_RD[inputs.request_N], inputs.candidate_units_ND).float()
