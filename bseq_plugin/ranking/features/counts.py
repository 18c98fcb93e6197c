"""Counts and recency: how often and how long ago, for the user as a whole and for the candidate.

Shape letters as in ``schema/ranking.py``. Windows are [at - w, at); ages are measured from ``at``.
Source: Covington et al., RecSys 2016 (recency and counts, with roots and logarithms beside them).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from bseq_plugin.ranking.features.history import SECOND_US, SPANS
from bseq_plugin.schema.options import PartOptions
from bseq_plugin.schema.part import OptionsT_co
from bseq_plugin.schema.ranking import FeatureInputs
from bseq_plugin.schema.ranking_features import RankingFeature


class CountFeature(RankingFeature[OptionsT_co]):
    """What counts and ages share."""

    group = "counts"
    unit = "events"
    null_rule = "never NaN"
    source = "Covington et al., RecSys 2016"


class NEvents(CountFeature):
    """How well the user is known."""

    name = "n_events"
    description = "all events strictly before at, also those beyond history_length"

    def compute(self, inputs: FeatureInputs) -> Tensor:
        """float32 [N]."""
        return inputs.count_before(inputs.at_R).float()[inputs.request_N]


class NEventsWindow(CountFeature):
    """How active the user is now."""

    name = "n_events_window"
    description = (
        "events in [at - w, at) for w = 1 h, 1 d, 7 d, 30 d, also beyond history_length: columns n_events_1h, ..."
    )

    def columns(self, event_types: tuple[str, ...]) -> tuple[str, ...]:
        """One a window."""
        return tuple(f"n_events_{span}" for span in SPANS)

    def compute(self, inputs: FeatureInputs) -> Tensor:
        """float32 [N, 4]."""
        all_R = inputs.count_before(inputs.at_R)
        earlier = [inputs.count_before(inputs.at_R - seconds * SECOND_US) for seconds in SPANS.values()]
        return torch.stack([all_R - earlier_R for earlier_R in earlier], 1).float()[inputs.request_N]


class SecsSinceLastEvent(CountFeature):
    """How long the user has been away."""

    name = "secs_since_last_event"
    description = (
        "at minus the time of the latest event; also its log(1 + x) and its square root: "
        "columns secs_since_last_event, ..._log1p, ..._sqrt"
    )
    unit = "seconds"
    null_rule = "NaN without history"

    def columns(self, event_types: tuple[str, ...]) -> tuple[str, ...]:
        """The age and two of its functions."""
        return (self.name, f"{self.name}_log1p", f"{self.name}_sqrt")

    def compute(self, inputs: FeatureInputs) -> Tensor:
        """float32 [N, 3]."""
        seconds_R = np.full(inputs.at_R.shape[0], np.nan)
        active_R = (inputs.lengths_R > 0).numpy()
        latest_T = inputs.timestamps_T.numpy()[inputs.offsets_R1.numpy()[1:][active_R] - 1]
        seconds_R[active_R] = (inputs.at_R.numpy()[active_R] - latest_T) / SECOND_US
        of_R3 = np.stack([seconds_R, np.log1p(seconds_R), np.sqrt(seconds_R)], 1).astype(np.float32)
        return torch.from_numpy(of_R3)[inputs.request_N]


class SecsSinceLastSameItem(CountFeature):
    """When a thing that is bought again and again is due."""

    name = "secs_since_last_same_item"
    description = "at minus the time of the latest event of the candidate itself, in the history that was read"
    unit = "seconds"
    null_rule = "NaN if there is none, or for an unknown item"

    def compute(self, inputs: FeatureInputs) -> Tensor:
        """float32 [N]."""
        same = inputs.once(_same_item)
        return _seconds_since(inputs, same.latest_N)


class SimilarOptions(PartOptions):
    """Options of ``secs_since_last_similar``."""

    theta: float = Field(0.7, gt=-1, lt=1, description="the cosine above which two items are similar")


class SecsSinceLastSimilar(CountFeature[SimilarOptions]):
    """When the user last did something like the candidate."""

    name = "secs_since_last_similar"
    description = "at minus the time of the latest event with <e(h_j), e(c)> > theta, option theta = 0.7"
    unit = "seconds"
    null_rule = "NaN if there is none, or for an unknown item"

    def compute(self, inputs: FeatureInputs) -> Tensor:
        """float32 [N]."""
        latest_N = np.full(inputs.candidate_N.shape[0], -1, np.int64)
        for piece in inputs.pieces:
            theta = np.float32(self.options.theta)
            first_gn = (piece.cosine_gnL > theta).argmax(2)  # newest first
            event_gn = np.take_along_axis(piece.event_gL, first_gn, axis=1)
            piece.put(np.where(piece.largest_gn > theta, event_gn, -1), latest_N)
        return _seconds_since(inputs, latest_N)


class NSameItem(CountFeature):
    """How often the user chose the candidate."""

    name = "n_same_item"
    description = "events of the candidate itself in the history that was read"
    null_rule = "NaN for an unknown item"

    def compute(self, inputs: FeatureInputs) -> Tensor:
        """float32 [N]."""
        return torch.from_numpy(inputs.once(_same_item).count_N)


class NSameCategory(CountFeature):
    """How often the user chose something of the candidate's kind."""

    name = "n_same_category"
    description = "events of items of the candidate's category (FeatureSpec.category) in the history that was read"
    null_rule = "NaN without categories, or for an item of an unknown one"

    def compute(self, inputs: FeatureInputs) -> Tensor:
        """float32 [N]."""
        if inputs.category_V is None:
            return torch.full((inputs.candidate_N.shape[0],), torch.nan)
        of_events, of_candidates = inputs.category_V[inputs.items_T], inputs.category_V[inputs.candidate_N]
        return torch.from_numpy(_same(inputs, of_events.numpy(), of_candidates.numpy()).count_N)


class NSameAction(CountFeature):
    """Whether the user keeps doing one thing."""

    name = "n_same_action"
    description = "events of the history that was read whose type is that of the latest event"
    null_rule = "NaN without history or event types"

    def compute(self, inputs: FeatureInputs) -> Tensor:
        """float32 [N]."""
        types_T, active_R = inputs.event_types_T, inputs.lengths_R > 0
        counts_R = torch.full(active_R.shape, torch.nan)
        if types_T is None or not len(types_T):
            return counts_R[inputs.request_N]
        latest_R = types_T[(inputs.offsets_R1[1:] - 1).clamp_min(0)]
        same_T = types_T == latest_R[inputs.request_T]
        all_R = torch.bincount(inputs.request_T[same_T], minlength=len(counts_R))
        counts_R[active_R] = all_R[active_R].float()
        return counts_R[inputs.request_N]


@dataclass(frozen=True)
class _Matches:
    """For each candidate row: its latest event that matches (place in ``_T``, -1 = none), and how many match.

    The count is NaN for a candidate that can't match.
    """

    latest_N: np.ndarray
    count_N: np.ndarray


def _same_item(inputs: FeatureInputs) -> _Matches:
    return _same(inputs, inputs.items_T.numpy(), inputs.candidate_N.numpy())


def _same(inputs: FeatureInputs, of_events_T: np.ndarray, of_candidates_N: np.ndarray) -> _Matches:
    """Join candidates with the events of their request that have the same number, 0 never matching."""
    stride = max(of_events_T.max(initial=0), of_candidates_N.max(initial=0)) + 1
    key_T = inputs.request_T.numpy() * stride + of_events_T
    key_N = inputs.request_N.numpy() * stride + of_candidates_N
    order_T = np.argsort(key_T, kind="stable")  # stable: the latest of equal keys is the last
    first_N, stop_N = (np.searchsorted(key_T[order_T], key_N, side) for side in ("left", "right"))
    found_N = (stop_N > first_N) & (of_candidates_N > 0)
    latest_N = np.full(len(key_N), -1)
    latest_N[found_N] = order_T[stop_N[found_N] - 1]
    return _Matches(latest_N, np.where(of_candidates_N > 0, stop_N - first_N, np.nan).astype(np.float32))


def _seconds_since(inputs: FeatureInputs, event_N: np.ndarray) -> Tensor:
    """float32 [N], from an event (place in ``_T``) to the row's ``at``; NaN for -1."""
    seconds_N = np.full(len(event_N), np.nan, np.float32)
    found_N = event_N >= 0
    at_N = inputs.at_R.numpy()[inputs.request_N.numpy()[found_N]]
    seconds_N[found_N] = (at_N - inputs.timestamps_T.numpy()[event_N[found_N]]) / SECOND_US
    return torch.from_numpy(seconds_N)
