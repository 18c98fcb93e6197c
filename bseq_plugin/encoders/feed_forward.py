"""The feed-forward part of a Transformer block, in float32 or on a CPU's bfloat16 unit while training."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bseq_plugin.encoders.packed.block import Begin
from bseq_plugin.layers import ZeroLinear
from bseq_plugin.matmul import Matmul, bfloat16_pays, fastest

ROWS = 1024  # about what a batch of short histories has


class FeedForward(nn.Module):
    """``W2 gelu(W1 x)``.

    ``begin = "mean"``: adds nothing at first. ``matmul = "bfloat16"``: while training, its products and what is between
    them are bfloat16; weights, their gradients and what it returns keep the model's type, and outside of training all
    does. It is for whoever trains to settle (``MachineChoices``).
    """

    def __init__(self, dim: int, inner: int, begin: Begin = "random", matmul: Matmul = "float32") -> None:
        super().__init__()
        self.matmul = matmul
        self.into = nn.Linear(dim, inner)
        self.out = (ZeroLinear if begin == "mean" else nn.Linear)(inner, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layers' output, of the shape and type of ``x``."""
        if not self.training or self.matmul != "bfloat16" or x.dtype != torch.float32:
            return self._products(x)
        with torch.autocast(x.device.type, torch.bfloat16):
            product = self._products(x)
        return product.to(x.dtype)

    def _products(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(F.gelu(self.into(x)))
        return out


def feed_forward_pays(dim: int, inner: int) -> bool:
    """Return whether training is measurably faster on this machine with ``matmul = "bfloat16"``."""
    return bfloat16_pays(torch.empty(0, dim), lambda: feed_forward_gain(dim, inner))


@cache
def feed_forward_gain(dim: int, inner: int) -> float:
    """Return the seconds of a forward and backward pass in float32 divided by those in bfloat16, on this machine."""
    kinds: tuple[Matmul, ...] = ("float32", "bfloat16")
    seconds = []
    # whoever asks may be in the midst of anything: their random numbers stay theirs, and gradients are needed here
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        x = torch.randn(ROWS, dim, requires_grad=True)
        for matmul in kinds:
            part = FeedForward(dim, inner, matmul=matmul)
            seconds.append(fastest(lambda part=part: part(x).sum().backward()))  # type: ignore[misc]
    return seconds[0] / seconds[1]
