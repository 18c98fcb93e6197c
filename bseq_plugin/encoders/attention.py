"""Causal self-attention over packed events without padding work."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from bseq_plugin.schema.packed import PackedEvents

# Users whose lengths round up to the same step share one padded call; steps grow by a quarter, so at most a fifth of
# a call is padding, and the number of calls grows with the log of the longest history.
STEP = 1.25


@dataclass(frozen=True)
class LengthGroups:
    """Users of like length stand in one padded block.

    Attributes:
        rows: for each group int64 [G, L], packed rows of its users, padded at the right with some valid row.
        masks: for each group bool [G, L], False at padding.
        order_T: int64 [T], where each packed row stands in the concatenation of all groups' real rows.
    """

    rows: list[Tensor]
    masks: list[Tensor]
    order_T: Tensor


def group_by_length(events: PackedEvents) -> LengthGroups:
    """Split the users of a batch into groups of like length; users without events are in none."""
    lengths_B = events.lengths_B
    steps_B = (lengths_B.clamp_min(1).double().log() / math.log(STEP)).ceil().long().masked_fill(lengths_B == 0, -1)
    rows, masks = [], []
    for step in sorted(set(steps_B.tolist())):
        if step < 0:
            continue
        users = (steps_B == step).nonzero().squeeze(1)
        lengths_G1 = lengths_B[users, None]
        place_1L = torch.arange(int(lengths_G1.max()), device=lengths_B.device)[None]
        rows.append(events.offsets_B1[users, None] + torch.minimum(place_1L, lengths_G1 - 1))
        masks.append(place_1L < lengths_G1)
    order_T = torch.empty(events.x_TD.shape[0], dtype=torch.int64, device=lengths_B.device)
    if rows:
        real_T = torch.cat([r[m] for r, m in zip(rows, masks, strict=True)])
        order_T[real_T] = torch.arange(len(real_T), device=lengths_B.device)
    return LengthGroups(rows, masks, order_T)


def causal_attention(q_THd: Tensor, k_THd: Tensor, v_THd: Tensor, groups: LengthGroups, dropout: float) -> Tensor:
    """``[T, H, d]``: each event attends to the events of its own user up to itself."""
    if not groups.rows:
        return q_THd
    attended = []
    for rows_GL, mask_GL in zip(groups.rows, groups.masks, strict=True):
        # Padding stands at the right, where no real query of a causal mask can see it.
        q, k, v = (x[rows_GL].transpose(1, 2) for x in (q_THd, k_THd, v_THd))
        out_GLHd = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout).transpose(1, 2)
        attended.append(out_GLHd[mask_GL])
    return torch.cat(attended)[groups.order_T]
