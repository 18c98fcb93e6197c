"""A small network for each task, nothing shared: the frozen-vector protocol.

Shape letters: N rows, D width, H hidden, K tasks.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

import bseq_plugin as bseq
from bseq_behaviour.contract.heads import BinaryHead


class MlpOptions(bseq.PartOptions):
    """``hidden = 0`` leaves logistic regression."""

    hidden: int = Field(32, ge=0, le=4096)
    dropout: float = Field(0.2, ge=0.0, lt=1.0)


class MlpHead(BinaryHead):
    """A linear answer and, with ``hidden``, a network of one hidden layer added to it; tasks share no parameter.

    Source: the protocol of the RecSys Challenge 2025, which judges a user vector by small networks trained on it.
    """

    name = "mlp"
    Options = MlpOptions

    def __init__(self, dim: int, n_tasks: int, options: Any = None) -> None:
        super().__init__(dim, n_tasks, options)
        hidden = self.options.hidden
        self.linear = nn.Linear(dim, n_tasks)
        if hidden:
            self.into_KDH = nn.Parameter(torch.empty(n_tasks, dim, hidden))
            self.bias_KH = nn.Parameter(torch.zeros(n_tasks, hidden))
            self.out_KH = nn.Parameter(torch.zeros(n_tasks, hidden))
            nn.init.uniform_(self.into_KDH, -1 / math.sqrt(dim), 1 / math.sqrt(dim))

    def forward(self, vectors_ND: Tensor) -> Tensor:
        """``logits_NK``."""
        linear_NK: Tensor = self.linear(vectors_ND)
        if not self.options.hidden:
            return linear_NK
        dropped_ND = F.dropout(vectors_ND, self.options.dropout, self.training)
        hidden_NKH = F.gelu(torch.einsum("nd,kdh->nkh", dropped_ND, self.into_KDH) + self.bias_KH)
        return linear_NK + (F.dropout(hidden_NKH, self.options.dropout, self.training) * self.out_KH).sum(-1)
