"""Running mean of the events: the smallest encoder that knows what came before."""

from __future__ import annotations

import torch
from torch import Tensor

from bseq_plugin.schema.packed import PackedEvents
from bseq_plugin.schema.parts import SequenceEncoder


class MeanEncoder(SequenceEncoder):
    """Each state is the mean of its user's events up to itself; no parameters."""

    name = "mean"

    def forward(self, events: PackedEvents) -> Tensor:
        """``states_TD``; see ``SequenceEncoder.forward``."""
        if events.x_TD.shape[0] == 0:
            return events.x_TD
        # float64: the difference of two long running sums loses digits in float32
        total_TD = torch.cumsum(events.x_TD.double(), 0)
        before_BD = torch.cat([total_TD.new_zeros(1, total_TD.shape[1]), total_TD])[events.offsets_B1[:-1]]
        mean_TD = (total_TD - before_BD[events.user_T]) / (events.position_T + 1)[:, None]
        return mean_TD.to(events.x_TD.dtype)
