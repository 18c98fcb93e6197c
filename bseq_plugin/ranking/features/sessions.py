"""Where in a session the user is.

A session is a run of events of one session id, where the log has ids (a basket); otherwise without a gap longer than
``gap_minutes``. Shape letters as in ``schema/ranking.py``.
"""

from __future__ import annotations

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from bseq_plugin.ranking.features.counts import CountFeature
from bseq_plugin.ranking.features.history import SECOND_US
from bseq_plugin.schema.options import PartOptions
from bseq_plugin.schema.ranking import FeatureInputs


class SessionOptions(PartOptions):
    """Options of the session features."""

    gap_minutes: float = Field(30.0, gt=0, description="a longer gap ends a session")


class SessionPosition(CountFeature[SessionOptions]):
    """How far into a session the request comes."""

    name = "session_position"
    description = (
        "1 + the events of the session that is going on at `at`; 1 if the latest event is older than "
        "option gap_minutes = 30"
    )
    unit = "place, from 1"

    def compute(self, inputs: FeatureInputs) -> Tensor:
        """float32 [N]."""
        length_R, gap_us = session_lengths(inputs, self.options), self.options.gap_minutes * 60 * SECOND_US
        active_R = length_R > 0
        latest_R = np.zeros(len(length_R), np.int64)
        latest_R[active_R] = inputs.timestamps_T.numpy()[inputs.offsets_R1.numpy()[1:][active_R] - 1]
        open_R = active_R & (inputs.at_R.numpy() - latest_R <= gap_us)
        return torch.from_numpy(np.where(open_R, 1 + length_R, 1).astype(np.float32))[inputs.request_N]


class SessionLen(CountFeature[SessionOptions]):
    """How long the latest session was, over or not."""

    name = "session_len"
    description = "events of the latest session in the history that was read, option gap_minutes = 30"
    null_rule = "NaN without history"

    def compute(self, inputs: FeatureInputs) -> Tensor:
        """float32 [N]."""
        length_R = session_lengths(inputs, self.options).astype(np.float32)
        return torch.from_numpy(np.where(length_R > 0, length_R, np.float32(np.nan)))[inputs.request_N]


def session_lengths(inputs: FeatureInputs, options: SessionOptions) -> np.ndarray:
    """int64 [R], events of the latest session of each request; 0 without history."""
    offsets_R1, times_T = inputs.offsets_R1.numpy(), inputs.timestamps_T.numpy()
    if inputs.session_ids_T is not None:
        starts_T = np.diff(inputs.session_ids_T.numpy(), prepend=-1) != 0
    else:
        starts_T = np.diff(times_T, prepend=0) > options.gap_minutes * 60 * SECOND_US
    starts_T[offsets_R1[:-1][offsets_R1[:-1] < len(times_T)]] = True
    starts = np.flatnonzero(starts_T)
    if not len(starts):
        return np.zeros(len(offsets_R1) - 1, np.int64)
    latest_R = starts[np.maximum(np.searchsorted(starts, offsets_R1[1:]) - 1, 0)]
    return np.where(inputs.lengths_R.numpy() > 0, offsets_R1[1:] - latest_R, 0)
