"""The next k events by a Transformer decoder layer, with a term for what was had before.

Before training it scores items at every step exactly as the encoder does: what it learns is what the steps before add,
and how often people come back to what they had.

Shape letters: B users, M states in memory, D width of item vectors, H width of the decoder, J steps, V items, E event
types with the unknown one.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

import bseq_plugin as bseq
from bseq_behaviour.contract.heads import DecoderMemory, SequenceHead


class TransformerOptions(bseq.PartOptions):
    """Size of the layer; ``dim`` is a multiple of ``n_heads``."""

    dim: int = Field(64, ge=1, le=4096)
    n_heads: int = Field(2, ge=1)
    dropout: float = Field(0.1, ge=0.0, lt=1.0)


class TransformerHead(SequenceHead):
    """One pre-norm Transformer decoder layer (Vaswani et al., NeurIPS 2017).

    An item's logit is ``(interest + W h) . v + (w . h) ln(1 + n)``, h the layer's answer and n how often the item is
    among the events in memory: the second part is what coming back adds (in the spirit of RepeatNet, Ren et al., AAAI
    2019). W and w begin at zero.

    Raises RecipeError if ``dim`` is not a multiple of ``n_heads``.
    """

    name = "transformer"
    Options = TransformerOptions

    def __init__(
        self, state_dim: int, item_vectors_VD: Tensor, n_event_types: int, n_steps: int, options: Any = None
    ) -> None:
        super().__init__(state_dim, item_vectors_VD, n_event_types, n_steps, options)
        dim, n_heads = self.options.dim, self.options.n_heads
        if dim % n_heads:
            raise bseq.RecipeError(f"dim = {dim} is not a multiple of n_heads = {n_heads}")
        width = item_vectors_VD.shape[1]
        self.memory_in, self.interest_in = nn.Linear(state_dim, dim), nn.Linear(width, dim)
        self.item_in = nn.Linear(width, dim)
        self.type_in = nn.Embedding(n_event_types + 1, dim)
        self.place_JH = nn.Parameter(0.02 * torch.randn(n_steps, dim))
        self.layer = nn.TransformerDecoderLayer(
            dim, n_heads, 2 * dim, self.options.dropout, "gelu", batch_first=True, norm_first=True
        )
        self.item_out, self.again_out = bseq.ZeroLinear(dim, width), bseq.ZeroLinear(dim, 1)
        self.type_out = nn.Linear(dim, n_event_types + 1)

    def forward(self, memory: DecoderMemory, items_BJ: Tensor, types_BJ: Tensor) -> tuple[Tensor, Tensor]:
        """``(item logits [B, J, V + 1], type logits [B, J, E])``."""
        return self._answers(memory, self._hidden(memory, items_BJ, types_BJ))

    def step(self, memory: DecoderMemory, items_BJ: Tensor, types_BJ: Tensor) -> tuple[Tensor, Tensor]:
        """``([B, V + 1], [B, E])``: items are scored for the last step only."""
        item_logits, type_logits = self._answers(memory, self._hidden(memory, items_BJ, types_BJ)[:, -1:])
        return item_logits[:, 0], type_logits[:, 0]

    def _hidden(self, memory: DecoderMemory, items_BJ: Tensor, types_BJ: Tensor) -> Tensor:
        """``[B, J, H]``."""
        self.check_steps(items_BJ)
        n_steps = items_BJ.shape[1]
        before = F.pad(items_BJ[:, :-1], (1, 0)), F.pad(types_BJ[:, :-1], (1, 0))
        x_BJH: Tensor = self._events(*before) + self.place_JH[:n_steps] + self.interest_in(memory.interest_BD)[:, None]
        if not len(x_BJH):
            return x_BJH  # torch's attention can not be asked about nobody
        memory_BMH = self.memory_in(memory.states_BMS) + self._events(memory.items_BM, memory.types_BM)
        later_JJ = torch.ones(n_steps, n_steps, dtype=torch.bool, device=x_BJH.device).triu(1)
        h_BJH: Tensor = self.layer(x_BJH, memory_BMH, tgt_mask=later_JJ, memory_key_padding_mask=memory.padded_BM)
        return h_BJH

    def _answers(self, memory: DecoderMemory, h_BJH: Tensor) -> tuple[Tensor, Tensor]:
        queries_BJD = memory.interest_BD[:, None] + self.item_out(h_BJH)
        known_BV = memory.counts(len(self.item_vectors_VD)).log1p()
        logits = queries_BJD @ self.item_vectors_VD.T + self.again_out(h_BJH) * known_BV[:, None]
        logits[..., 0] = -torch.inf  # the unknown item is no answer
        return logits, self.type_out(h_BJH)

    def _events(self, items: Tensor, types: Tensor) -> Tensor:
        events_in: Tensor = self.item_in(self.item_vectors_VD[items]) + self.type_in(types)
        return events_in
