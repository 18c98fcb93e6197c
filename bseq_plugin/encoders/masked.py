"""Bidirectional Transformer of the BERT4Rec family."""

from __future__ import annotations

from typing import cast

import torch
from pydantic import Field
from torch import Tensor, nn

from bseq_plugin.encoders.causal import CausalBlock, CausalOptions
from bseq_plugin.encoders.packed.attention import TileView
from bseq_plugin.encoders.packed.stack import PositionEmbedding
from bseq_plugin.errors import RecipeError
from bseq_plugin.layers import dropout
from bseq_plugin.schema.encoders import SequenceEncoder
from bseq_plugin.schema.options import PartOptions
from bseq_plugin.schema.packed import PackedEvents


class MaskedOptions(PartOptions):
    """Options of the ``masked`` encoder."""

    n_blocks: int = Field(2, ge=1)
    n_heads: int = Field(2, ge=1)
    feed_forward: int | None = Field(None, ge=1, description="inner width of the feed-forward part; default: 4 x dim")


class MaskedEncoder(SequenceEncoder[MaskedOptions]):
    """Attention to both sides (Sun et al., "BERT4Rec: Sequential Recommendation with Bidirectional Encoder
    Representations from Transformer", CIKM 2019), with pre-norm blocks.

    The state of an event is what the encoder puts in the place of a mask token behind it: attention goes both ways,
    but over the history up to that event only. Asked for one state a user, as in serving and with the
    objectives "prefix" and "window", that is one pass; asked for all, each prefix is a pass of its own. With the
    objective "masked" it learns from hidden events instead: ``masked_states_at``.

    Raises RecipeError if ``dim`` is not a multiple of ``n_heads``.
    """

    name = "masked"
    predicts_masked = True

    def __init__(self, dim: int, max_length: int, dropout: float, options: MaskedOptions | None = None) -> None:
        super().__init__(dim, max_length, dropout, options)
        if dim % self.options.n_heads:
            raise RecipeError(f"dim = {dim} is not a multiple of encoder.n_heads = {self.options.n_heads}")
        block = CausalOptions(n_heads=self.options.n_heads, feed_forward=self.options.feed_forward)
        self.mask = PositionEmbedding(1, dim)
        self.position = PositionEmbedding(max_length, dim)
        self.blocks = nn.ModuleList(CausalBlock(dim, dropout, block) for _ in range(self.options.n_blocks))
        self.norm = nn.LayerNorm(dim)

    def forward(self, events: PackedEvents) -> Tensor:
        """Return ``states_TD``; see ``SequenceEncoder.forward``."""
        return self.states_at(events, torch.arange(events.x_TD.shape[0], device=events.x_TD.device))

    def states_at(self, events: PackedEvents, rows_Q: Tensor) -> Tensor:
        """Return ``states_QD``, from a history for each row, which ends with that event and a mask token."""
        if rows_Q.shape[0] == 0:
            return events.x_TD.new_zeros(0, self.dim)
        lengths_Q = events.position_T[rows_Q] + 2
        offsets_Q1 = nn.functional.pad(lengths_Q.cumsum(0), (1, 0))
        n_rows, mask_row = cast(int, offsets_Q1[-1].item()), events.x_TD.shape[0]  # a graph has a symbol for n_rows
        places = torch.arange(n_rows, device=rows_Q.device) - torch.repeat_interleave(
            offsets_Q1[1:] - 2 - rows_Q, lengths_Q, output_size=n_rows
        )
        masks_Q = offsets_Q1[1:] - 1
        places[masks_Q] = mask_row
        x_TD = torch.cat([events.x_TD, self.mask.weight.to(events.x_TD.dtype)])[places]
        longest = None if events.longest is None else events.longest + 1
        prefixes = PackedEvents(x_TD, offsets_Q1, longest=longest)
        return self._run(prefixes, masks_Q)

    def masked_states_at(self, events: PackedEvents, rows_Q: Tensor) -> Tensor:
        """Return ``states_QD`` of the packed rows ``rows_Q``, whose events are hidden; the user's others are seen."""
        hidden_T = torch.zeros(events.x_TD.shape[0], dtype=torch.bool, device=rows_Q.device).index_fill(0, rows_Q, True)
        x_TD = torch.where(hidden_T[:, None], self.mask.weight.to(events.x_TD.dtype), events.x_TD)
        return self._run(events.with_x(x_TD), rows_Q)

    def _run(self, events: PackedEvents, rows_Q: Tensor) -> Tensor:
        view = TileView.both_ways(events)
        # with a mask token behind max_length events the oldest stands where training never has one
        age_T = events.age_T.clamp(max=self.max_length - 1)
        x_TD = dropout(events.x_TD + self.position(age_T), self.dropout, self.training)
        x, (*first, last) = view.layout.spread(x_TD), self.blocks
        for block in first:
            x = block(x, view)
        states: Tensor = self.norm(last(x, view, view.layout.choose(rows_Q)))
        return states[: rows_Q.shape[0]]
