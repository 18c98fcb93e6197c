"""The parts of a Transformer block; ``causal`` puts them together.

Shape letters: M events that are looked at, R events that look (see ``attention``), D width, H heads.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bseq_plugin.encoders.dropout import dropout
from bseq_plugin.encoders.packed.attention import NewestView, View
from bseq_plugin.layers import IdentityLinear, IdentityValues

Begin = Literal["random", "mean"]


class Residual(nn.Module):
    """The residual connection around a sublayer f: pre-norm ``x + dropout(f(norm(x)))``, post-norm ``norm(x +
    dropout(f(x)))``.
    """

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
        return x.view(len(x), n_parts, self.n_heads, x.shape[1] // (n_parts * self.n_heads)).unbind(1)


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
