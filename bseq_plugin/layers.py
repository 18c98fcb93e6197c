"""Linear layers begin as the identity or as nothing, so that attention begins as a mean.

From random layers an encoder has to find first that what was is the best guess at what will be; on logs where people
come back to the same items most of the training goes into that.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class IdentityLinear(nn.Linear):
    """A linear layer that begins as the identity; as wide as it is long."""

    def reset_parameters(self) -> None:
        """Set the identity; also called when a model made on the meta device gets its memory."""
        nn.init.eye_(self.weight)
        nn.init.zeros_(self.bias)


class IdentityValues(nn.Linear):
    """A layer of queries, keys and values at once, the values last: these begin as what goes in."""

    def reset_parameters(self) -> None:
        """Set the values to the identity, and draw queries and keys."""
        super().reset_parameters()
        values = slice(self.out_features - self.in_features, None)
        with torch.no_grad():
            nn.init.eye_(self.weight[values])
            self.bias[values] = 0.0


class ZeroLinear(nn.Linear):
    """A linear layer that begins at zero."""

    def reset_parameters(self) -> None:
        """Set weights and biases to zero."""
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


def softmax_by_group(scores_N: Tensor, group_N: Tensor, n_groups: int) -> Tensor:
    """Return the softmax of scores ``[N, ...]`` over the rows of each group; ``group_N`` int64, 0..n_groups - 1."""
    shape = (n_groups, *scores_N.shape[1:])
    index = group_N.view(-1, *[1] * (scores_N.dim() - 1)).expand_as(scores_N)
    top_G = scores_N.new_full(shape, -torch.inf).scatter_reduce(0, index, scores_N.detach(), "amax")
    weights_N = (scores_N - top_G[group_N]).exp()
    return weights_N / weights_N.new_zeros(shape).index_add(0, group_N, weights_N)[group_N]


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
