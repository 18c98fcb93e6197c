"""Cosines between a candidate and the events of its user's history.

Shape letters as in ``schema/ranking.py``, E event types, H half lives. e(.) is an L2-normalised item vector, h_j an
event strictly before ``at``, c the candidate. Events of items unknown to the model have no vector and are passed over.
"""

from __future__ import annotations

import re

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from bseq_plugin.schema.grid import on_grid, products, unit_vectors
from bseq_plugin.schema.options import PartOptions
from bseq_plugin.schema.part import OptionsT_co
from bseq_plugin.schema.ranking import FeatureInputs
from bseq_plugin.schema.ranking_features import RankingFeature

SECOND_US = 1_000_000
SPANS = {"1h": 3_600, "1d": 86_400, "7d": 7 * 86_400, "30d": 30 * 86_400}  # seconds


class HistoryFeature(RankingFeature[OptionsT_co]):
    """What the cosines to events share."""

    group = "history"
    unit = "cosine in [-1, 1]"
    null_rule = "NaN without an event of a known item, or for an unknown candidate"
    source = "Grbovic & Cheng, KDD 2018"


class MeanCosine(HistoryFeature):
    """What the plain means of cosines share: they are computed in one go."""

    def compute(self, inputs: FeatureInputs) -> Tensor:
        """float32 [N]."""
        return inputs.once(_mean_cosines)[self.name]


class SimLast1(MeanCosine):
    """Nearness to what the user did last."""

    name = "sim_last1"
    description = "<e(h), e(c)> for the latest event h of a known item"


class SimLast3Mean(MeanCosine):
    """Nearness to what the user is about."""

    name = "sim_last3_mean"
    description = "mean of <e(h_j), e(c)> over the latest three (or fewer) events of known items"


class HistSimMax(HistoryFeature):
    """Whether the history holds anything like the candidate; 1 if it holds the candidate itself."""

    name = "hist_sim_max"
    description = "max_j <e(h_j), e(c)> over the history that was read"

    def compute(self, inputs: FeatureInputs) -> Tensor:
        """float32 [N]."""
        return torch.from_numpy(inputs.once(_extremes)[:, 0])


class HistSimMean(MeanCosine):
    """Nearness to the whole history that was read."""

    name = "hist_sim_mean"
    description = "mean_j <e(h_j), e(c)> over the history that was read"


class HistSimP90(HistoryFeature):
    """Like the maximum, but it takes a tenth of the history to raise it."""

    name = "hist_sim_p90"
    description = "the smallest <e(h_j), e(c)> that nine tenths of the history do not exceed (nearest rank)"

    def compute(self, inputs: FeatureInputs) -> Tensor:
        """float32 [N]."""
        return torch.from_numpy(inputs.once(_extremes)[:, 1])


class DecaySim(HistoryFeature):
    """Nearness to the history, new events counting more."""

    name = "decay_sim"
    description = (
        "sum_j w_j <e(h_j), e(c)> / sum_j w_j with w_j = 2^(-(at - ts_j) / H), for H = 1 h, 1 d, 7 d, 30 d: "
        "columns decay_sim_1h, ..."
    )
    source = "Grbovic & Cheng, KDD 2018; Pi et al., CIKM 2020"

    def columns(self, event_types: tuple[str, ...]) -> tuple[str, ...]:
        """One a half life."""
        return tuple(f"{self.name}_{span}" for span in SPANS)

    def compute(self, inputs: FeatureInputs) -> Tensor:
        """float32 [N, H]."""
        return inputs.cosines(weighted_means(inputs, _decay_weights(inputs))).float()


class SimActionCentroid(HistoryFeature):
    """Nearness to what the user clicked, bought, liked: one column an event type."""

    name = "sim_action_centroid"
    description = "cosine of e(c) and the mean of e(h_j) over events of one type: columns sim_TYPE_centroid"
    null_rule = "NaN without an event of the type and a known item, or for an unknown candidate"

    def columns(self, event_types: tuple[str, ...]) -> tuple[str, ...]:
        """One an event type of the model's vocabulary; ``sim_action_centroid`` if it has none."""
        words = [re.sub(r"\W+", "_", name).strip("_").lower() or "type" for name in event_types]
        numbered = [f"{word}_{n}" if words.count(word) > 1 else word for n, word in enumerate(words)]
        return tuple(f"sim_{word}_centroid" for word in numbered) or (self.name,)

    def compute(self, inputs: FeatureInputs) -> Tensor:
        """float32 [N, E]."""
        if inputs.event_types_T is None or not inputs.event_types:
            n_rows, n_types = inputs.candidate_N.shape[0], len(inputs.event_types)
            return torch.full((n_rows, n_types) if n_types else (n_rows,), torch.nan)
        masks = [inputs.event_types_T == row for row in range(1, len(inputs.event_types) + 1)]
        return _centroid_cosines(inputs, masks)


class NegativeOptions(PartOptions):
    """Options of ``neg_sim_skip``."""

    event_types: tuple[str, ...] = Field(("skip",), description="event types that say no")


class NegSimSkip(HistoryFeature[NegativeOptions]):
    """How far the candidate is from what the user turned down; larger is better."""

    name = "neg_sim_skip"
    description = "minus the cosine of e(c) and the mean of e(h_j) over events of the option event_types = [skip]"
    null_rule = "NaN without such an event of a known item, or for an unknown candidate"

    def compute(self, inputs: FeatureInputs) -> Tensor:
        """float32 [N]."""
        rows = [row for row, name in enumerate(inputs.event_types, 1) if name in self.options.event_types]
        if inputs.event_types_T is None or not rows:
            return torch.full((inputs.candidate_N.shape[0],), torch.nan)
        return -_centroid_cosines(inputs, [torch.isin(inputs.event_types_T, torch.tensor(rows))])[:, 0]


def weighted_means(inputs: FeatureInputs, weights_MT: np.ndarray) -> Tensor:
    """float64 [R, M, D] on the grid, weighted means of e(h_j) over events of known items; NaN where all weights are 0.

    Args:
        weights_MT: float64 in [0, 1], M weights an event.
    """
    means_RMD = np.full((inputs.at_R.shape[0], len(weights_MT), inputs.item_vectors_VD.shape[1]), np.nan)
    for group in inputs.groups:
        if group.event_gL.shape[1]:
            weights_gML = np.where(group.is_event_gL[:, None], weights_MT[:, group.event_gL].transpose(1, 0, 2), 0.0)
            # products with vectors of the grid have to add up exactly, so that the order of addition can't show
            scale_g11 = group.scale_g[:, None, None]
            weights_gML = np.rint(weights_gML * scale_g11) / scale_g11
            with np.errstate(invalid="ignore"):  # 0/0 is the NaN of a request without such events
                means_gMD = products(weights_gML, group.events_gLD) / weights_gML.sum(2, keepdims=True)
            means_RMD[group.request_g] = means_gMD
    return on_grid(torch.from_numpy(means_RMD))


def _mean_cosines(inputs: FeatureInputs) -> dict[str, Tensor]:
    """float32 [N] by name of the feature: mean cosine over the latest event of a known item, the latest three, all."""
    weights_3T = np.zeros((3, inputs.items_T.shape[0]))
    weights_3T[2] = 1
    for group in inputs.groups:
        for place, latest in ((0, 1), (1, 3)):
            weights_3T[place, group.event_gL[:, :latest][group.is_event_gL[:, :latest]]] = 1
    latest_N, latest3_N, all_N = inputs.cosines(weighted_means(inputs, weights_3T)).float().unbind(1)
    return {"sim_last1": latest_N, "sim_last3_mean": latest3_N, "hist_sim_mean": all_N}


def _decay_weights(inputs: FeatureInputs) -> np.ndarray:
    """float64 [H, T], 2^(-age / H), with ages against the request's newest event of a known item.

    Ages against ``at`` would give the same ratios, but all weights of an old history would round to 0.
    """
    times_T = inputs.timestamps_T.numpy()
    newest_R = np.zeros(inputs.at_R.shape[0], np.int64)
    for group in inputs.groups:
        if group.event_gL.shape[1]:
            newest_R[group.request_g] = times_T[group.event_gL[:, 0]]
    age_T = np.maximum(newest_R[inputs.request_T.numpy()] - times_T, 0) / SECOND_US
    return np.asarray(np.exp2(-age_T / np.array(list(SPANS.values()))[:, None]))


def _centroid_cosines(inputs: FeatureInputs, masks: list[Tensor]) -> Tensor:
    means_RED = weighted_means(inputs, torch.stack(masks).double().numpy())
    return inputs.cosines(unit_vectors(means_RED)).float()


def _extremes(inputs: FeatureInputs) -> np.ndarray:
    """float32 [N, 2], the largest cosine to an event, and the 90th percentile by nearest rank."""
    result_N2 = np.full((inputs.candidate_N.shape[0], 2), np.nan, np.float32)
    for piece in inputs.pieces:
        length = piece.event_gL.shape[1]
        sorted_gnL = np.sort(piece.cosine_gnL, axis=2)  # faster than a selection: it is vectorised
        above_g = piece.lengths_g - (9 * piece.lengths_g + 9) // 10  # events above nearest rank ceil(0.9 length)
        p90_gn = np.take_along_axis(sorted_gnL, (length - 1 - above_g)[:, None, None], axis=2)[..., 0]
        piece.put(np.stack([piece.largest_gn, p90_gn], 2), result_N2)
    return np.clip(result_N2, -1.0, 1.0)
