"""What encoders made of attention blocks share: which events go through which block."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from bseq_plugin.encoders.packed.attention import NewestView, TileView
from bseq_plugin.encoders.packed.pairs import Wants
from bseq_plugin.encoders.packed.varlen import VarlenView
from bseq_plugin.schema.packed import PackedEvents
from bseq_plugin.schema.parts import SequenceEncoder

Choose = Callable[[Tensor], Tensor]


class PositionEmbedding(nn.Embedding):
    """Begins as small as the item rows it is added to, also when a model made on the meta device gets its memory."""

    def reset_parameters(self) -> None:
        """Normal with a standard deviation of 0.02."""
        nn.init.normal_(self.weight, std=0.02)


class BlockStack(SequenceEncoder):
    """``blocks`` over the events of many users, each called as ``block(x_MD, view, choose)``: see ``CausalBlock``."""

    blocks: nn.ModuleList
    wants: Wants

    def forward(self, events: PackedEvents) -> Tensor:
        """``states_TD``; see ``SequenceEncoder.forward``."""
        return self._run(events, None)

    def states_at(self, events: PackedEvents, rows_Q: Tensor) -> Tensor:
        """``states_QD``; the last block works on the Q rows only where it can.

        Its attention too if all of them are the newest of their users.
        """
        return self._run(events, rows_Q)

    @abstractmethod
    def embed(self, events: PackedEvents) -> Tensor:
        """``x_TD`` that the first block gets."""

    @abstractmethod
    def finish(self, x: Tensor) -> Tensor:
        """States from what the last block gives."""

    def hidden(self, events: PackedEvents) -> Tensor | None:
        """bool [T], events of this batch that only they themselves see; none by default."""
        return None

    def all_look(self, events: PackedEvents, hidden_T: Tensor | None) -> TileView | VarlenView:
        """The view in which all events look; laid out once a batch, read by every block."""
        return TileView.of(events, self.wants, hidden_T)

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
                wanted = len(events.x_TD if rows_Q is None else rows_Q)
                return self.finish(last(x, tiles, tiles.layout.choose(rows_Q)))[:wanted]
            x = tiles.layout.gather(x)
        choose = partial(torch.index_select, dim=0, index=events.user_T[rows_Q])
        return self.finish(last(x, NewestView.of(events, self.wants, hidden_T), choose))


def are_newest(events: PackedEvents, rows_Q: Tensor) -> bool:
    """Whether there are rows, and each is the newest of its user."""
    if len(rows_Q) == 0 or len(rows_Q) > events.n_users:
        return False
    return torch.equal(rows_Q, events.offsets_B1[1:][events.user_T[rows_Q]] - 1)
