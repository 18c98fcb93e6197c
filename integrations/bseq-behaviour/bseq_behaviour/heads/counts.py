"""Rates of counts, units a week: log-linear in the vector, with or without a share of what was taken lately.

Shape letters: N rows, D width, C categories.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bseq_behaviour.contract.heads import CountHead

MAX_LOG_RATE = 8.0  # some 3,000 units a week; beyond it a step too far would end in infinity
LEAST_USUAL = 1e-6


def _log_linear(dim: int, begin_C: Tensor) -> nn.Linear:
    """The logarithms of rates, ``begin_C`` for everybody before anything is learned."""
    linear = nn.Linear(dim, len(begin_C))
    with torch.no_grad():
        linear.weight.zero_()
        linear.bias.copy_(torch.log(begin_C))
    return linear


class LogLinearHead(CountHead):
    """``rate = exp(vector . W + b)``, Poisson regression; it does not read what was taken lately."""

    name = "log_linear"

    def __init__(self, dim: int, usual_C: Tensor, options: Any = None) -> None:
        super().__init__(dim, usual_C, options)
        self.linear = _log_linear(dim, usual_C.clamp_min(LEAST_USUAL))

    def forward(self, vectors_ND: Tensor, recent_NC: Tensor) -> Tensor:
        """``rates_NC``."""
        return self._log_rates(vectors_ND).exp()

    def loss(self, vectors_ND: Tensor, recent_NC: Tensor, units_NC: Tensor) -> Tensor:
        """The same from the logarithms of the rates."""
        return F.poisson_nll_loss(self._log_rates(vectors_ND), units_NC)

    def _log_rates(self, vectors_ND: Tensor) -> Tensor:
        log_rates_NC: Tensor = self.linear(vectors_ND).clamp(max=MAX_LOG_RATE)
        return log_rates_NC


class KeptShareHead(CountHead):
    """``rate = keep * recent + exp(vector . W + b)``, ``keep`` a number from 0 to 1 for each category.

    It begins with half of what was taken lately and half of what is usual.
    """

    name = "kept_share"

    def __init__(self, dim: int, usual_C: Tensor, options: Any = None) -> None:
        super().__init__(dim, usual_C, options)
        self.linear = _log_linear(dim, usual_C.clamp_min(LEAST_USUAL) / 2)
        self.keep_C = nn.Parameter(torch.zeros(len(usual_C)))

    def forward(self, vectors_ND: Tensor, recent_NC: Tensor) -> Tensor:
        """``rates_NC``."""
        own_NC = torch.exp(self.linear(vectors_ND).clamp(max=MAX_LOG_RATE))
        rates_NC: Tensor = torch.sigmoid(self.keep_C) * recent_NC + own_NC
        return rates_NC
