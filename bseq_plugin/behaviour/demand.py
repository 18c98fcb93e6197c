"""Demand: how many units of each category will be bought in the next week, from the bottom up.

Every user has a rate for every category: part of what they took lately, and part of what their vector says; demand is
the sum over the users.

Shape letters: U users, N rows (a user at an instant), D width, C categories, W weeks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bseq_plugin.behaviour.best import BestWeights
from bseq_plugin.behaviour.inputs import Scale
from bseq_plugin.behaviour.labels import WEEK_US
from bseq_plugin.data.sequences import Sequences
from bseq_plugin.errors import SchemaError, UsageError

RECENT_WEEKS = 8
BATCH_ROWS, MAX_EPOCHS, PATIENCE = 1024, 60, 8


def user_demand(
    log: Sequences, category_V: np.ndarray, n_categories: int, start_us: int, n_weeks: int = 1
) -> np.ndarray:
    """float32 [U, C], events of each user and category in the ``n_weeks`` weeks from ``start_us``.

    ``category_V``: int64 [V + 1], 0..C-1, or -1 for items that are not counted.
    """
    window = log.between(start_us, start_us + n_weeks * WEEK_US)
    categories_T = category_V[window.items]
    kept_T = categories_T >= 0
    flat = window.user_index[kept_T] * n_categories + categories_T[kept_T]
    counts = np.bincount(flat, minlength=log.n_users * n_categories).reshape(log.n_users, n_categories)
    return counts.astype(np.float32)


@dataclass(frozen=True)
class DemandRows:
    """Users at instants.

    Attributes:
        vectors_ND: float32, what is known of the user.
        recent_NC: float32, units a week over the ``RECENT_WEEKS`` before.
        units_NC: float32, units in the week that followed.
    """

    vectors_ND: np.ndarray
    recent_NC: np.ndarray
    units_NC: np.ndarray


class DemandHead(nn.Module):
    """``rate = keep * recent + exp(vector . W + b)``, ``keep`` a number from 0 to 1 for each category."""

    def __init__(self, dim: int, mean_C: Tensor) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, len(mean_C))
        self.keep_C = nn.Parameter(torch.zeros(len(mean_C)))
        with torch.no_grad():
            self.linear.weight.zero_()
            self.linear.bias.copy_(torch.log(mean_C.clamp_min(1e-6) / 2))

    def forward(self, vectors_ND: Tensor, recent_NC: Tensor) -> Tensor:
        """``rate_NC`` > 0, units a week."""
        rate_NC: Tensor = torch.sigmoid(self.keep_C) * recent_NC + torch.exp(self.linear(vectors_ND).clamp(max=8))
        return rate_NC


@dataclass(frozen=True)
class DemandModel:
    """A trained head with the scale of its vectors."""

    head: DemandHead
    scale: Scale

    @torch.no_grad()
    def rates(self, vectors_ND: np.ndarray, recent_NC: np.ndarray) -> np.ndarray:
        """float32 [N, C], expected units of the week that follows."""
        found: np.ndarray = self.head(torch.from_numpy(self.scale(vectors_ND)), torch.from_numpy(recent_NC)).numpy()
        return found


def fit_demand(train: DemandRows, validation: DemandRows, seed: int = 0) -> DemandModel:
    """Poisson regression on frozen vectors, keeping the epoch with the least loss on ``validation``.

    Raises SchemaError for no rows, or a validation week in which nothing was bought; BseqError if the loss is no longer
    finite.
    """
    if not len(train.units_NC) or not validation.units_NC.sum():
        raise SchemaError("demand needs users to learn from and units in the week it is judged at; choose other weeks")
    scale = Scale.of(train.vectors_ND)
    parts = [
        [torch.from_numpy(values) for values in (scale(rows.vectors_ND), rows.recent_NC, rows.units_NC)]
        for rows in (train, validation)
    ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = DemandHead(train.vectors_ND.shape[1], parts[0][2].mean(0))
        _descend(head, *parts)
    return DemandModel(head.eval(), scale)


def _descend(head: DemandHead, train: list[Tensor], validation: list[Tensor]) -> None:
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2, weight_decay=1e-2)
    best = BestWeights(head)
    for _ in range(MAX_EPOCHS):
        for rows in torch.split(torch.randperm(len(train[0])), BATCH_ROWS):
            optimizer.zero_grad()
            loss = F.poisson_nll_loss(head(train[0][rows], train[1][rows]), train[2][rows], log_input=False)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():
            best.see(float(F.poisson_nll_loss(head(*validation[:2]), validation[2], log_input=False)))
        if best.waited >= PATIENCE:
            break
    best.restore()


def wape(truth_CW: np.ndarray, forecast_CW: np.ndarray) -> float:
    """Weighted absolute percentage error: sum |truth - forecast| / sum truth. Raises UsageError without any units."""
    if truth_CW.shape != forecast_CW.shape or not truth_CW.sum() > 0:
        raise UsageError(f"truth {truth_CW.shape} with {truth_CW.sum()} units, forecast {forecast_CW.shape}")
    return float(np.abs(truth_CW - forecast_CW).sum() / truth_CW.sum())
