"""The base class of encoders made of attention blocks: which events go through which block."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from bseq_plugin.encoders.packed.attention import NewestView, TileView
from bseq_plugin.encoders.packed.pairs import PairFeatures
from bseq_plugin.encoders.packed.varlen import VarlenView
from bseq_plugin.layers import dropout
from bseq_plugin.schema.encoders import SequenceEncoder
from bseq_plugin.schema.packed import PackedEvents
from bseq_plugin.schema.part import OptionsT_co

Choose = Callable[[Tensor], Tensor]


class PositionEmbedding(nn.Embedding):
    """An embedding that begins as small as the item rows it is added to."""

    def reset_parameters(self) -> None:
        """Draw from a normal distribution; also called when a model made on the meta device gets its memory."""
        nn.init.normal_(self.weight, std=0.02)


class BlockStack(SequenceEncoder[OptionsT_co]):
    """An encoder whose ``blocks`` run over the events of many users, each called as ``block(x_MD, view, choose)``, see
    ``CausalBlock``: behind an embedding of positions, if there is one, and in front of a norm.
    """

    blocks: nn.ModuleList
    pair_features: PairFeatures
    position: PositionEmbedding | None
    from_newest = True  # where positions count from
    norm: nn.Module

    def forward(self, events: PackedEvents) -> Tensor:
        """Return ``states_TD``; see ``SequenceEncoder.forward``."""
        return self._run(events, None)

    def states_at(self, events: PackedEvents, rows_Q: Tensor) -> Tensor:
        """Return ``states_QD``; the last block works on these rows alone where it can.

        Its attention too if all of them are the newest of their users.
        """
        return self._run(events, rows_Q)

    def embed(self, events: PackedEvents) -> Tensor:
        """Return ``x_TD``, the input of the first block: the events with their positions added."""
        x_TD = events.x_TD
        if self.position is not None:
            x_TD = x_TD + self.position(events.age_T if self.from_newest else events.position_T)
        return dropout(x_TD, self.embedding_dropout, self.training)

    @property
    def embedding_dropout(self) -> float:
        """The share of the embedded events' values that is dropped."""
        return self.dropout

    def finish(self, x: Tensor) -> Tensor:
        """Return the states for the output of the last block."""
        states: Tensor = self.norm(x)
        return states

    def hidden(self, events: PackedEvents) -> Tensor | None:
        """Return bool [T], events of this batch that only they themselves see; None, the default, if there is none."""
        return None

    def all_look(self, events: PackedEvents, hidden_T: Tensor | None) -> TileView | VarlenView:
        """Return the view in which all events look; it is laid out once a batch and read by every block."""
        return TileView.of(events, self.pair_features, hidden_T)

    def _run(self, events: PackedEvents, rows_Q: Tensor | None) -> Tensor:
        x, hidden_T = self.embed(events), self.hidden(events)
        newest = rows_Q is not None and are_newest(events, rows_Q)
        *first, last = self.blocks
        if first or not newest:
            tiles = self.all_look(events, hidden_T)
            x = tiles.layout.spread(x)
            for block in first:
                x = block(x, tiles)
            if not newest:
                wanted = (events.x_TD if rows_Q is None else rows_Q).shape[0]
                return self.finish(last(x, tiles, tiles.layout.choose(rows_Q)))[:wanted]
            x = tiles.layout.gather(x)
        choose = partial(torch.index_select, dim=0, index=events.user_T[rows_Q])
        return self.finish(last(x, NewestView.of(events, self.pair_features, hidden_T), choose))


def are_newest(events: PackedEvents, rows_Q: Tensor) -> bool:
    """Return whether there are rows, and each is the newest of its user; False where data may not be looked at."""
    if events.longest is not None:
        return False
    if len(rows_Q) == 0 or len(rows_Q) > events.n_users:
        return False
    return torch.equal(rows_Q, events.offsets_B1[1:][events.user_T[rows_Q]] - 1)
