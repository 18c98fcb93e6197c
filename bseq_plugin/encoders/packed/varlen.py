"""Causal self-attention over packed events by torch's kernel for sequences of different lengths, on a GPU.

``torch.nn.attention.varlen`` (FlashAttention) takes the rows as they are: no lines, no mask, no padding. It knows half
precision alone, and no dropout of attention weights, so that it serves where a model computes in half precision
(``torch.autocast``, or half weights) and does not ask for that; elsewhere ``TileView`` does. It has run on no GPU yet:
it is taken only where ``encoder.varlen_attention`` asks for it.

Shape letters: T packed events, H heads, d width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from bseq_plugin.encoders.packed.layout import Layout
from bseq_plugin.schema.packed import PackedEvents

HALF_PRECISION = (torch.float16, torch.bfloat16)
CAUSAL = (-1, 0)  # all events before, none behind
HEAD_STEP, WIDEST_HEAD = 8, 256  # widths of heads that FlashAttention has kernels for
AMPERE = (8, 0)  # the first compute capability that it runs on


@dataclass(frozen=True)
class VarlenView:
    """The view in which every event looks at its user's events up to itself: M = R = T.

    Attributes:
        layout: every event is its own cell.
        offsets_B1: int32, where each user's rows begin.
        longest: events of the longest history.
    """

    layout: Layout
    offsets_B1: Tensor
    longest: int

    @classmethod
    def of(cls, events: PackedEvents) -> VarlenView:
        """Make the view of a batch that has at least one event."""
        n_events = events.x_TD.shape[0]
        return cls(Layout((), n_events, None), events.offsets_B1.to(torch.int32), int(events.lengths_B.max()))

    def queries(self, x_TD: Tensor) -> Tensor:
        """Return ``x_TD``: all events look."""
        return x_TD

    def attend(self, q_THd: Tensor, k_THd: Tensor, v_THd: Tensor, share: float) -> Tensor:
        """Return ``[T, H, d]``, the attended values. Raises ValueError for dropout, which the kernel lacks."""
        if share:
            raise ValueError("the kernel for sequences of different lengths has no dropout: use TileView")
        from torch.nn.attention.varlen import varlen_attn

        q, k, v = (x.contiguous() for x in (q_THd, k_THd, v_THd))
        lengths = (self.offsets_B1, self.offsets_B1, self.longest, self.longest)
        return cast(Tensor, varlen_attn(q, k, v, *lengths, window_size=CAUSAL))

    def average(self, x_TD: Tensor) -> Tensor:
        """Raise ValueError: the kernel has no moving average, and the caller must not ask for one."""
        raise ValueError("the kernel for sequences of different lengths has no moving average: use TileView")


def varlen_serves(x_TD: Tensor, head_width: int) -> bool:
    """Return whether the kernel takes queries made of ``x_TD``: half precision, a GPU, heads of a known width.

    Under ``torch.autocast`` the type is that of its products.
    """
    if x_TD.device.type != "cuda" or not len(x_TD) or head_width % HEAD_STEP or head_width > WIDEST_HEAD:
        return False
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x_TD.dtype
    return dtype in HALF_PRECISION and torch.cuda.get_device_capability(x_TD.device) >= AMPERE
