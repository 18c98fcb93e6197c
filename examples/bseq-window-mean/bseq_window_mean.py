"""A plugin for bseq: the mean of a user's latest events as an encoder."""

from torch import Tensor
from torch.nn.functional import pad

import bseq_plugin as bseq


class WindowMeanOptions(bseq.PartOptions):
    window: int = 5  # events


class WindowMean(bseq.SequenceEncoder[WindowMeanOptions]):
    """Each state is the mean of its own event and the ``window - 1`` before it."""

    name = "window_mean"

    def forward(self, events: bseq.PackedEvents) -> Tensor:
        window = self.options.window
        x_BLD, _ = events.padded()
        sums_BLD = pad(x_BLD.cumsum(1), (0, 0, window, 0))
        sums_TD = events.packed(sums_BLD[:, window:] - sums_BLD[:, :-window])
        return sums_TD / (events.position_T + 1).clamp(max=window)[:, None]


@bseq.hookimpl
def bseq_encoders() -> list[type[bseq.SequenceEncoder]]:
    return [WindowMean]
