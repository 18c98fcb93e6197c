"""The feed-forward part of a Transformer block, in float32 or on a CPU's bfloat16 unit while training."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bseq_plugin.encoders.block import Begin
from bseq_plugin.layers import ZeroLinear
from bseq_plugin.schema.matmul import Matmul, fastest, in_halves

ROWS = 1024  # about what a batch of short histories has


class FeedForward(nn.Module):
    """``W2 gelu(W1 x)``, or SwiGLU ``W2 (silu(W1 x) * W3 x)`` (Shazeer, "GLU Variants Improve Transformer", 2020).

    ``begin = "mean"``: adds nothing at first. ``matmul``: the type of its products and of what is between them while
    training; weights, their gradients and what it returns keep the model's type, and outside of training all does.
    """

    def __init__(self, dim: int, inner: int, swiglu: bool, begin: Begin = "random", matmul: Matmul = "float32") -> None:
        super().__init__()
        self.swiglu = swiglu
        self.matmul = matmul
        self.into = nn.Linear(dim, 2 * inner if swiglu else inner)
        self.out = (ZeroLinear if begin == "mean" else nn.Linear)(inner, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape, same type."""
        dim, inner = self.out.out_features, self.out.in_features
        if not self.training or not in_halves(x, self.matmul, lambda: bfloat16_gain(dim, inner, self.swiglu)):
            return self._products(x)
        with torch.autocast(x.device.type, torch.bfloat16):
            found = self._products(x)
        return found.to(x.dtype)

    def _products(self, x: Tensor) -> Tensor:
        inner = self.into(x)
        if self.swiglu:
            gate, value = inner.chunk(2, -1)
            inner = F.silu(gate) * value
        else:
            inner = F.gelu(inner)
        out: Tensor = self.out(inner)
        return out


@cache
def bfloat16_gain(dim: int, inner: int, swiglu: bool = False) -> float:
    """Seconds of a forward and backward pass in float32 divided by those in bfloat16, on this machine."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, dim, generator=generator, requires_grad=True)
    seconds = []
    kinds: tuple[Matmul, ...] = ("float32", "bfloat16")
    for matmul in kinds:
        part = FeedForward(dim, inner, swiglu, matmul=matmul)
        seconds.append(fastest(lambda part=part: part(x).sum().backward()))  # type: ignore[misc]
    return seconds[0] / seconds[1]
