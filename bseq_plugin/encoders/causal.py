"""Causal Transformer of the SASRec family."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from bseq_plugin.encoders.attention import LengthGroups, causal_attention, group_by_length
from bseq_plugin.errors import RecipeError
from bseq_plugin.schema.options import PartOptions
from bseq_plugin.schema.packed import PackedEvents
from bseq_plugin.schema.parts import SequenceEncoder


class CausalOptions(PartOptions):
    """Options of the ``causal`` encoder."""

    n_blocks: int = Field(2, ge=1)
    n_heads: int = Field(2, ge=1)
    feed_forward: int | None = Field(
        None, ge=1, description="inner width of the feed-forward part; 4 x dim if not given"
    )


class CausalEncoder(SequenceEncoder):
    """Pre-norm causal self-attention (Kang and McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018).

    Positions count from the newest event of a history, as in the left-padded original, so that "the last event" has
    the same position whatever the length. Linear layers and norms work on T rows, attention on users of like length.

    Raises RecipeError if ``dim`` is not a multiple of ``n_heads``.
    """

    name = "causal"
    Options = CausalOptions

    def __init__(self, dim: int, max_length: int, dropout: float, options: Any = None) -> None:
        super().__init__(dim, max_length, dropout, options)
        if dim % self.options.n_heads:
            raise RecipeError(f"dim = {dim} is not a multiple of encoder_options.n_heads = {self.options.n_heads}")
        self.position = PositionEmbedding(max_length, dim)
        inner = self.options.feed_forward or 4 * dim
        self.blocks = nn.ModuleList(
            CausalBlock(dim, self.options.n_heads, inner, dropout) for _ in range(self.options.n_blocks)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, events: PackedEvents) -> Tensor:
        """``states_TD``; see ``SequenceEncoder.forward``."""
        return self._run(events, None)

    def states_at(self, events: PackedEvents, rows_Q: Tensor) -> Tensor:
        """``states_QD``; the last block does its linear layers on the Q rows only."""
        return self._run(events, rows_Q)

    def _run(self, events: PackedEvents, rows_Q: Tensor | None) -> Tensor:
        x_TD = events.x_TD + self.position(events.age_T)
        x_TD = F.dropout(x_TD, self.dropout, self.training)
        groups = group_by_length(events)
        last = len(self.blocks) - 1
        for number, block in enumerate(self.blocks):
            x_TD = block(x_TD, groups, rows_Q if number == last else None)
        out: Tensor = self.norm(x_TD)
        return out


class PositionEmbedding(nn.Embedding):
    """Begins as small as the item rows it is added to, also when a model made on the meta device gets its memory."""

    def reset_parameters(self) -> None:
        """Normal with a standard deviation of 0.02."""
        nn.init.normal_(self.weight, std=0.02)


class CausalBlock(nn.Module):
    """``x + attention(norm(x))``, then ``x + feed_forward(norm(x))``."""

    def __init__(self, dim: int, n_heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.dropout = dropout
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query_key_value, self.attention_out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.feed_forward_in, self.feed_forward_out = nn.Linear(dim, inner), nn.Linear(inner, dim)

    def forward(self, x_TD: Tensor, groups: LengthGroups, rows_Q: Tensor | None = None) -> Tensor:
        """``[T, D]`` to ``[T, D]``, or to ``[Q, D]`` if only ``rows_Q`` are wanted."""
        qkv = self.query_key_value(self.attention_norm(x_TD))
        qkv = qkv.view(x_TD.shape[0], 3, self.n_heads, x_TD.shape[1] // self.n_heads)
        q_THd, k_THd, v_THd = qkv.unbind(1)
        attended = causal_attention(q_THd, k_THd, v_THd, groups, self.dropout if self.training else 0.0)
        attended = attended.flatten(1)
        if rows_Q is not None:
            x_TD, attended = x_TD[rows_Q], attended[rows_Q]
        x_TD = x_TD + F.dropout(self.attention_out(attended), self.dropout, self.training)
        inner = F.gelu(self.feed_forward_in(self.feed_forward_norm(x_TD)))
        return x_TD + F.dropout(self.feed_forward_out(inner), self.dropout, self.training)
