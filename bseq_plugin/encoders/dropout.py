"""Dropout that does not show in the profile of a CPU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

LEVELS = 1 << 8
FINE = 8  # levels from either end, within which rounding could change a share by more than a sixteenth


def dropout(x: Tensor, share: float, training: bool) -> Tensor:
    """Drop out as ``F.dropout`` does; on a CPU ``share`` is rounded to a multiple of 2 ** -8, and what is kept is
    scaled to that.

    On a CPU torch draws one Bernoulli number a value; eight 8-bit numbers out of one 64-bit draw take far less. Shares
    below 1/32 or above 31/32 are left to torch.
    """
    if not training or share == 0.0:
        return x
    dropped = round(share * LEVELS)
    if x.device.type != "cpu" or not FINE <= share * LEVELS <= LEVELS - FINE:
        return F.dropout(x, share, True)
    bits = torch.empty((x.numel() + 7) // 8, dtype=torch.int64)
    bits.random_(-(1 << 63), None)  # the whole range: without bounds the highest bit is never set
    kept = bits.view(torch.int8)[: x.numel()].view(x.shape) >= dropped - LEVELS // 2
    return x * kept.to(x.dtype).mul_(LEVELS / (LEVELS - dropped))
