"""Hierarchical sequential transduction units."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from bseq_plugin.encoders.packed.attention import OwnView, pointwise
from bseq_plugin.encoders.packed.pairs import N_TIME_BUCKETS, PairBias, PairFeatures, n_distance_buckets
from bseq_plugin.encoders.packed.stack import BlockStack, Choose, PositionEmbedding
from bseq_plugin.errors import RecipeError
from bseq_plugin.layers import IdentityLinear, IdentityValues, dropout
from bseq_plugin.schema.options import PartOptions

OPEN = 1.2784645  # its silu is 1


class HstuOptions(PartOptions):
    """Options of the ``hstu`` encoder."""

    n_blocks: int = Field(2, ge=1)
    n_heads: int = Field(2, ge=1)
    position: Literal["newest", "oldest", "none"] = Field("newest", description="where positions count from")
    relative_position_bias: bool = Field(True, description="learned bias a head by the events between two events")
    relative_time_bias: bool = Field(True, description="learned bias a head by the seconds between two events")


class HstuEncoder(BlockStack[HstuOptions]):
    """HSTU (Zhai et al., "Actions Speak Louder than Words: Trillion-Parameter Sequential Transducers for Generative
    Recommendations", ICML 2024, section 3.1).

    Each block computes ``U, V, Q, K = silu(W1 norm(x))``, ``A V = silu(Q K^T + bias of position and time) V`` summed
    over the events up to each, and ``x + W2 (norm(A V) * U)``. The paper divides ``A V`` by the longest length; the
    norm behind it takes every constant factor out, so that none is applied here. Buckets of distances and times are
    those of ``pairs``.

    A block begins as the sum of the events, all with weight 1: values and ``W2`` are the identity, gates U are 1, and
    the bias is such that its silu is 1. On logs where people come back to the same items that is most of the answer,
    and from random layers most of a training goes into finding it (docs/behaviour.md has figures).

    Raises RecipeError if ``dim`` is not a multiple of ``n_heads``, and when it is called with ``relative_time_bias``
    for events without times.
    """

    name = "hstu"

    def __init__(self, dim: int, max_length: int, dropout: float, options: HstuOptions | None = None) -> None:
        super().__init__(dim, max_length, dropout, options)
        if dim % self.options.n_heads:
            raise RecipeError(f"dim = {dim} is not a multiple of encoder.n_heads = {self.options.n_heads}")
        self.pair_features = PairFeatures(self.options.relative_position_bias, self.options.relative_time_bias)
        self.position = PositionEmbedding(max_length, dim) if self.options.position != "none" else None
        self.from_newest = self.options.position == "newest"
        n_distances = n_distance_buckets(max_length) if self.pair_features.distance else 0
        n_times = N_TIME_BUCKETS if self.pair_features.time else 0
        self.blocks = nn.ModuleList(
            HstuBlock(dim, self.options.n_heads, dropout, n_distances, n_times) for _ in range(self.options.n_blocks)
        )
        self.norm = nn.LayerNorm(dim)


class HstuBlock(nn.Module):
    """One unit of ``HstuEncoder``."""

    def __init__(self, dim: int, n_heads: int, share: float, n_distances: int, n_times: int) -> None:
        super().__init__()
        self.heads, self.share = (n_heads, dim // n_heads), share
        self.norm_in, self.norm_out = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.gate_query, self.key_value = GateQuery(dim, 2 * dim), IdentityValues(dim, 2 * dim)
        self.out = IdentityLinear(dim, dim)
        self.bias = OpenBias(n_heads, n_distances, n_times) if n_distances or n_times else None

    def forward(
        self, x_MD: Tensor, view: OwnView, choose: Choose | None = None, value_MD: Tensor | None = None
    ) -> Tensor:
        """Return ``[R, D]``, or only the rows that ``choose`` takes; linear layers then run on these rows alone.

        ``value_MD``: in place of the rows' own values, from ``values``.
        """
        normed_MD = self.norm_in(x_MD)
        gate, query = F.silu(self.gate_query(view.queries(normed_MD))).chunk(2, -1)
        if value_MD is None:
            key, value = F.silu(self.key_value(normed_MD)).chunk(2, -1)
        else:
            key, value = F.silu(self._half(normed_MD, 0)), value_MD
        q, k, v = (x.reshape(x.shape[0], *self.heads) for x in (query, key, value))
        summed = pointwise(view, q, k, v, self.bias).flatten(1)
        x = view.queries(x_MD)
        if choose is not None:
            x, gate, summed = choose(x), choose(gate), choose(summed)
        gated = dropout(self.norm_out(summed) * gate, self.share, self.training)
        return torch.add(x, self.out(gated))

    def values(self, x_TD: Tensor) -> Tensor:
        """Return ``[T, D]``, what each row adds to a sum with weight 1."""
        return F.silu(self._half(self.norm_in(x_TD), 1))

    def _half(self, normed: Tensor, half: int) -> Tensor:
        """Return the keys (0) or the values (1) before their silu."""
        weight, bias = self.key_value.weight, self.key_value.bias
        own = slice(half * weight.shape[1], (half + 1) * weight.shape[1])
        return F.linear(normed, weight[own], bias[own])


class GateQuery(nn.Linear):
    """A layer of gates and queries; the gates begin at nearly 1, whatever the event."""

    def reset_parameters(self) -> None:
        """Set the gates to nearly 1; also called when a model made on the meta device gets its memory."""
        super().reset_parameters()
        gates = slice(0, self.out_features // 2)
        with torch.no_grad():
            self.weight[gates] *= 0.1
            self.bias[gates] = OPEN


class OpenBias(PairBias):
    """A bias at first such that every pair has a weight of about 1, where ``PairBias`` begins at zero."""

    def reset_parameters(self) -> None:
        """Set the tables so that the bias of every pair is ``OPEN``."""
        super().reset_parameters()
        nn.init.constant_(next(self.parameters(recurse=False)), OPEN)  # of one table: both are added up
