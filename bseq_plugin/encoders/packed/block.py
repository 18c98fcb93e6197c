"""The parts of a Transformer block; ``causal`` puts them together.

Shape letters: M events that are looked at, R events that look (see ``attention``), D width, H heads.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bseq_plugin.encoders.packed.attention import NewestView, View
from bseq_plugin.layers import IdentityLinear, IdentityValues, ZeroLinear, dropout
from bseq_plugin.matmul import Matmul, bfloat16_pays, fastest

Begin = Literal["random", "mean"]


class Residual(nn.Module):
    """The residual connection of a sublayer f: ``x + dropout(f(norm(x)))``, or ``post`` ``norm(x + dropout(f(x)))``."""

    def __init__(self, dim: int, post: bool, share: float) -> None:
        super().__init__()
        self.post = post
        self.share = share
        self.norm = nn.LayerNorm(dim)

    def before(self, x: Tensor) -> Tensor:
        """Return the input of the sublayer."""
        return x if self.post else self.norm(x)

    def after(self, x: Tensor, result: Tensor) -> Tensor:
        """Return the sum of ``x`` and the sublayer's result."""
        result = dropout(result, self.share, self.training)
        return self.norm(x + result) if self.post else x + result


class SelfAttention(nn.Module):
    """Multi-head attention in front of its output layer.

    ``begin = "mean"``: values and output layer begin as the identity.
    """

    def __init__(self, dim: int, n_heads: int, share: float, begin: Begin = "random") -> None:
        super().__init__()
        self.n_heads = n_heads
        self.share = share
        values, out = (IdentityValues, IdentityLinear) if begin == "mean" else (nn.Linear, nn.Linear)
        self.query_key_value, self.out = values(dim, 3 * dim), out(dim, dim)

    def weights(self, x_MD: Tensor, view: NewestView) -> Tensor:
        """Return ``[M, H]``, the attention of the newest events; see ``NewestView.weights``."""
        q, k, _ = self._heads(self.query_key_value(x_MD), 3)
        return view.weights(view.queries(q), k)

    def forward(self, x_MD: Tensor, view: View) -> Tensor:
        """Return ``[R, D]``, the heads side by side."""
        dim = x_MD.shape[1]
        looking_RD = view.queries(x_MD)
        if looking_RD is x_MD:
            q, k, v = self._heads(self.query_key_value(x_MD), 3)
        else:
            weight, bias = self.query_key_value.weight, self.query_key_value.bias
            (q,) = self._heads(F.linear(looking_RD, weight[:dim], bias[:dim]), 1)
            k, v = self._heads(F.linear(x_MD, weight[dim:], bias[dim:]), 2)
        return view.attend(q, k, v, self.share if self.training else 0.0).flatten(1)

    def _heads(self, x: Tensor, n_parts: int) -> tuple[Tensor, ...]:
        return x.view(x.shape[0], n_parts, self.n_heads, x.shape[1] // (n_parts * self.n_heads)).unbind(1)


FILTER_BETA = 0.5  # a quarter of what changes fast passes at first; 1 passes all and learns more slowly


class FrequencyFilter(nn.Module):
    """Rescales what changes fast: ``low + beta ** 2 * (x - low)``, one beta a column.

    After the frequency rescaler of BSARec (Shin et al., "An Attentive Inductive Bias for Sequential Recommendation
    beyond the Self-Attention", AAAI 2024), made causal. BSARec takes ``low`` from the lowest frequencies of an FFT over
    the padded window, so that the representation of an early event contains later ones, and depends on the padding.
    Here ``low`` is an exponential moving average of the user's events up to each: the weights of ``Pairs.average``.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.full((dim,), FILTER_BETA))

    def reset_parameters(self) -> None:
        """Set every beta to ``FILTER_BETA``."""
        nn.init.constant_(self.beta, FILTER_BETA)

    def forward(self, x_MD: Tensor, view: View) -> Tensor:
        """Return ``[R, D]``, the filtered events that look."""
        low_RD = view.average(x_MD)
        return low_RD + self.beta.square() * (view.queries(x_MD) - low_RD)


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
