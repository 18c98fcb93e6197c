"""Recurrent encoder of the GRU4Rec family."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from bseq_plugin.layers import dropout
from bseq_plugin.schema.encoders import SequenceEncoder
from bseq_plugin.schema.options import PartOptions
from bseq_plugin.schema.packed import PackedEvents


class GruOptions(PartOptions):
    """Options of the ``gru`` encoder."""

    n_layers: int = Field(1, ge=1)
    hidden: int | None = Field(None, ge=1, description="width of the recurrent state; dim if not given")


class GruEncoder(SequenceEncoder[GruOptions]):
    """Gated recurrent units (Hidasi et al., "Session-based Recommendations with Recurrent Neural Networks", ICLR 2016).

    Events go through the layers step by step, all users that have a next event at once: no step is padding.
    """

    name = "gru"

    def __init__(self, dim: int, max_length: int, dropout: float, options: GruOptions | None = None) -> None:
        super().__init__(dim, max_length, dropout, options)
        hidden, n_layers = self.options.hidden or dim, self.options.n_layers
        self.gru = nn.GRU(dim, hidden, n_layers, dropout=dropout if n_layers > 1 else 0.0)
        self.out = nn.Linear(hidden, dim)

    def forward(self, events: PackedEvents) -> Tensor:
        """Return ``states_TD``; see ``SequenceEncoder.forward``."""
        return self._finish(self._hidden(events))

    def states_at(self, events: PackedEvents, rows_Q: Tensor) -> Tensor:
        """Return ``states_QD``; only these rows go through the output layer."""
        return self._finish(self._hidden(events).index_select(0, rows_Q))

    def _finish(self, hidden_NH: Tensor) -> Tensor:
        states: Tensor = self.out(dropout(hidden_NH, self.dropout, self.training))
        return states

    def _hidden(self, events: PackedEvents) -> Tensor:
        """Return ``[T, hidden]``, the recurrent states."""
        if events.x_TD.shape[0] == 0:
            return events.x_TD.new_zeros(0, self.gru.hidden_size)
        if events.longest is not None:  # the steps of a padded batch: events behind a history change nothing before
            x_BLD, _ = events.padded()
            return events.packed(self.gru(x_BLD.transpose(0, 1))[0].transpose(0, 1))
        # step by step, in each the users with the longest histories first: what PackedSequence wants
        rank_B = torch.empty_like(events.lengths_B)
        longest_first_B = events.lengths_B.argsort(descending=True, stable=True)
        rank_B[longest_first_B] = torch.arange(events.n_users, device=rank_B.device)
        order_T = (events.position_T * events.n_users + rank_B[events.user_T]).argsort()
        sizes = events.position_T.bincount().cpu()
        x_TD = dropout(events.x_TD, self.dropout, self.training)
        states, _ = self.gru(PackedSequence(x_TD[order_T], sizes))
        hidden_TH: Tensor = torch.empty_like(states.data).index_copy(0, order_T, states.data)
        return hidden_TH
