"""Causal Transformer of the SASRec family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from bseq_plugin.encoders.packed.attention import NewestView, TileView, View
from bseq_plugin.encoders.packed.block import (
    Begin,
    FeedForward,
    FrequencyFilter,
    Residual,
    SelfAttention,
    feed_forward_pays,
)
from bseq_plugin.encoders.packed.pairs import PairFeatures
from bseq_plugin.encoders.packed.stack import BlockStack, Choose, PositionEmbedding
from bseq_plugin.encoders.packed.varlen import VarlenView, varlen_serves
from bseq_plugin.errors import RecipeError
from bseq_plugin.schema.options import PartOptions
from bseq_plugin.schema.packed import PackedEvents


class CausalOptions(PartOptions):
    """Options of the ``causal`` encoder."""

    n_blocks: int = Field(2, ge=1)
    n_heads: int = Field(2, ge=1)
    feed_forward: int | None = Field(None, ge=1, description="inner width of the feed-forward part; default: 4 x dim")
    begin: Begin = Field("random", description="'mean' = a block begins as its event and the mean of those it sees")
    norm: Literal["pre", "post"] = Field("pre", description="where the norm of a sublayer stands")
    final_norm: bool = Field(True, description="a norm behind the last block")
    position: Literal["newest", "oldest", "none"] = Field("newest", description="where positions count from")
    filter_weight: float = Field(0.0, ge=0, le=1, description="share of the frequency filter beside attention; 0 = off")
    filter_half_life: float = Field(
        2.0, gt=0, description="an event this many events older counts half in the filter's moving average"
    )
    embedding_dropout: float | None = Field(None, ge=0, lt=1, description="of embedded events; not given: dropout")
    attention_dropout: float | None = Field(None, ge=0, lt=1, description="of attention weights; not given: dropout")
    hidden_dropout: float | None = Field(None, ge=0, lt=1, description="of sublayer results; not given: dropout")
    event_dropout: float = Field(
        0.0, ge=0, lt=1, description="share of events that only they themselves see while training"
    )
    varlen_attention: bool = Field(
        False,
        description="on a GPU in half precision, attention by torch's kernel for sequences of different lengths; not "
        "with filter_weight, and while training only without dropout of attention weights and of events",
    )

    @model_validator(mode="after")
    def _kernel_knows_them(self) -> CausalOptions:
        if self.varlen_attention and self.filter_weight:
            raise ValueError(
                f"varlen_attention does not go with filter_weight = {self.filter_weight}: the kernel has no moving "
                "average; leave one of them out"
            )
        return self

    def share(self, name: str, otherwise: float) -> float:
        """Return the dropout called ``name``, or the recipe's where it is not given."""
        given: float | None = getattr(self, f"{name}_dropout")
        return otherwise if given is None else given

    def inner(self, dim: int) -> int:
        """Return the inner width of the feed-forward part."""
        return self.feed_forward or 4 * dim

    @property
    def pair_features(self) -> PairFeatures:
        """What the blocks read of a pair of events."""
        return PairFeatures(half_life=self.filter_half_life if self.filter_weight else None)


class CausalEncoder(BlockStack[CausalOptions]):
    """Causal self-attention (Kang and McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018).

    Without options the blocks are pre-norm, and positions count from the newest event of a history, as in the
    left-padded original, so that "the last event" has the same position whatever the length.

    Memory grows with the length of a history. With the filter or event dropout it grows with its square: these keep a
    number for each pair of events.

    Raises RecipeError if ``dim`` is not a multiple of ``n_heads``.
    """

    name = "causal"

    def __init__(self, dim: int, max_length: int, dropout: float, options: CausalOptions | None = None) -> None:
        super().__init__(dim, max_length, dropout, options)
        if dim % self.options.n_heads:
            raise RecipeError(f"dim = {dim} is not a multiple of encoder.n_heads = {self.options.n_heads}")
        self.pair_features = self.options.pair_features
        self.position = PositionEmbedding(max_length, dim) if self.options.position != "none" else None
        self.from_newest = self.options.position == "newest"
        self.blocks = nn.ModuleList(CausalBlock(dim, dropout, self.options) for _ in range(self.options.n_blocks))
        self.norm = nn.LayerNorm(dim) if self.options.final_norm else nn.Identity()

    def machine_choices(self, dim: int) -> dict[str, Any]:
        """Choose ``matmul``, the type of the feed-forward products: what is faster on this machine."""
        if torch.cuda.is_available():
            return {}
        pays = feed_forward_pays(dim, self.options.inner(dim))
        return {"matmul": "bfloat16" if pays else "float32"}

    def settle(self, choices: Mapping[str, Any]) -> None:
        """Take ``choices`` over into the blocks."""
        super().settle(choices)
        for block in self.blocks:
            cast(CausalBlock, block).feed_forward.matmul = choices.get("matmul", "float32")

    @property
    def embedding_dropout(self) -> float:
        """The option of that name, or the recipe's dropout."""
        return self.options.share("embedding", self.dropout)

    def all_look(self, events: PackedEvents, hidden_T: Tensor | None) -> TileView | VarlenView:
        """With ``varlen_attention`` take a GPU's kernel for sequences of different lengths, where it serves."""
        drops = self.training and self.options.share("attention", self.dropout) > 0
        asked = self.options.varlen_attention and hidden_T is None and not drops
        if asked and varlen_serves(events.x_TD, events.x_TD.shape[1] // self.options.n_heads):
            return VarlenView.of(events)
        return super().all_look(events, hidden_T)

    def attention(self, events: PackedEvents) -> Tensor | None:
        """Return ``[T]``, the last block's attention weights of each user's newest event, averaged over the heads.

        With more than one block what is attended to are states, which know of earlier events too; what goes past the
        attention (the residual, the frequency filter) has no share.
        """
        if events.x_TD.shape[0] == 0:
            return events.x_TD.new_zeros(0)
        *first, last = self.blocks
        x_TD = self.embed(events)
        if first:
            tiles = TileView.of(events, self.pair_features)
            x = tiles.layout.spread(x_TD)
            for block in first:
                x = block(x, tiles)
            x_TD = tiles.layout.gather(x)
        return cast(CausalBlock, last).shares(x_TD, NewestView.of(events, self.pair_features))

    def hidden(self, events: PackedEvents) -> Tensor | None:
        """Return bool [T], events of this batch that only they themselves see; drawn once, so that no block tells."""
        share: float = self.options.event_dropout
        if not self.training or not share:
            return None
        return torch.rand(events.x_TD.shape[0], device=events.x_TD.device) < share


class CausalBlock(nn.Module):
    """Attention, mixed with the frequency filter if there is one, then feed-forward; see ``Residual``."""

    def __init__(self, dim: int, dropout: float, options: CausalOptions) -> None:
        super().__init__()
        hidden, post = options.share("hidden", dropout), options.norm == "post"
        self.attention = SelfAttention(dim, options.n_heads, options.share("attention", dropout), options.begin)
        self.attention_residual = Residual(dim, post, hidden)
        self.filter_weight = options.filter_weight
        self.filter = FrequencyFilter(dim) if options.filter_weight else None
        self.feed_forward = FeedForward(dim, options.inner(dim), options.begin)
        self.feed_forward_residual = Residual(dim, post, hidden)

    def shares(self, x_TD: Tensor, view: NewestView) -> Tensor:
        """Return ``[T]``, the attention of the newest events, averaged over the heads."""
        return self.attention.weights(self.attention_residual.before(x_TD), view).mean(1)

    def forward(self, x_MD: Tensor, view: View, choose: Choose | None = None) -> Tensor:
        """Return ``[R, D]``, or only the rows that ``choose`` takes; linear layers then run on these rows alone."""
        normed_MD = self.attention_residual.before(x_MD)
        attended = self.attention(normed_MD, view)
        filtered = None if self.filter is None else self.filter(normed_MD, view)
        x = view.queries(x_MD)
        if choose is not None:
            x, attended = choose(x), choose(attended)
            filtered = None if filtered is None else choose(filtered)
        mixed = self.attention.out(attended)
        if filtered is not None:
            mixed = torch.lerp(mixed, filtered, self.filter_weight)
        x = self.attention_residual.after(x, mixed)
        residual = self.feed_forward_residual
        return residual.after(x, self.feed_forward(residual.before(x)))
