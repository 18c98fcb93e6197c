"""Experts that all tasks share, mixed for each task by a gate of its own.

Shape letters: N rows, D width, H width of an expert, E experts, K tasks.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

import bseq_plugin as bseq
from bseq_behaviour.contract.heads import BinaryHead


class MmoeOptions(bseq.PartOptions):
    """Sizes of the mixture."""

    n_experts: int = Field(4, ge=1, le=256)
    hidden: int = Field(32, ge=1, le=4096)
    dropout: float = Field(0.2, ge=0.0, lt=1.0)


class MmoeHead(BinaryHead):
    """Multi-gate mixture of experts: for each task a softmax over the experts, read off the vector, then one layer.

    Source: Ma et al., KDD 2018.
    """

    name = "mmoe"
    Options = MmoeOptions

    def __init__(self, dim: int, n_tasks: int, options: Any = None) -> None:
        super().__init__(dim, n_tasks, options)
        n_experts, hidden = self.options.n_experts, self.options.hidden
        self.experts = nn.Linear(dim, n_experts * hidden)
        self.gates = nn.Linear(dim, n_tasks * n_experts)
        self.towers_KH = nn.Parameter(torch.empty(n_tasks, hidden))
        self.bias_K = nn.Parameter(torch.zeros(n_tasks))
        nn.init.normal_(self.towers_KH, std=hidden**-0.5)

    def forward(self, vectors_ND: Tensor) -> Tensor:
        """``logits_NK``."""
        dropped_ND = F.dropout(vectors_ND, self.options.dropout, self.training)
        experts_NEH = F.gelu(self.experts(dropped_ND)).view(-1, self.options.n_experts, self.options.hidden)
        gates_NKE = self.gates(vectors_ND).view(-1, self.n_tasks, self.options.n_experts).softmax(-1)
        mixed_NKH = F.dropout(gates_NKE @ experts_NEH, self.options.dropout, self.training)
        logits_NK: Tensor = (mixed_NKH * self.towers_KH).sum(-1) + self.bias_K
        return logits_NK
