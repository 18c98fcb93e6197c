"""Demand: how many units of each category will be bought in the next week, from the bottom up.

Every user has a rate for every category, which a count head says from their vector and what they took lately; demand is
the sum over the users.

Shape letters: U users, N rows (a user at an instant), D width, C categories, W weeks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import bseq_plugin as bseq
from bseq_behaviour.contract.answers import checked
from bseq_behaviour.contract.choice import HeadChoice, count_head
from bseq_behaviour.contract.heads import CountHead
from bseq_behaviour.fitting import Plan, fit, seeded
from bseq_behaviour.propensity.inputs import Scale
from bseq_behaviour.propensity.labels import WEEK_US

RECENT_WEEKS = 8
BATCH_ROWS, MAX_EPOCHS, PATIENCE = 1024, 60, 8


def user_demand(
    log: bseq.Sequences, category_V: np.ndarray, n_categories: int, start_us: int, n_weeks: int = 1
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


@dataclass(frozen=True)
class DemandModel:
    """A trained head with the scale of its vectors."""

    head: CountHead
    scale: Scale

    @torch.no_grad()
    def rates(self, vectors_ND: np.ndarray, recent_NC: np.ndarray) -> np.ndarray:
        """float32 [N, C], expected units of the week that follows. Raises PluginError if the head gives nonsense."""
        answer = self.head(torch.from_numpy(self.scale(vectors_ND)), torch.from_numpy(recent_NC))
        rates_NC: np.ndarray = checked(self.head, answer, recent_NC.shape, least=0.0, finite=True).numpy()
        return rates_NC


def fit_demand(
    train: DemandRows,
    validation: DemandRows,
    seed: int = 0,
    *,
    head: str = "kept_share",
    options: Mapping[str, Any] | None = None,
) -> DemandModel:
    """A count head on frozen vectors, keeping the epoch with the least loss on ``validation``.

    Raises SchemaError for no rows, or a validation week in which nothing was bought; UsageError or RecipeError for an
    unknown head or option; PluginError for a head that gives nonsense; BseqError if the loss is no longer finite.
    """
    if not len(train.units_NC) or not validation.units_NC.sum():
        raise bseq.SchemaError(
            "demand needs users to learn from and units in the week it is judged at; choose other weeks"
        )
    scale = Scale.of(train.vectors_ND)
    learned, held = (
        [torch.from_numpy(values) for values in (scale(rows.vectors_ND), rows.recent_NC, rows.units_NC)]
        for rows in (train, validation)
    )
    with seeded(seed):
        module = count_head(HeadChoice(head, options or {}), train.vectors_ND.shape[1], learned[2].mean(0))
        fit(
            module,
            torch.optim.AdamW(module.parameters(), lr=1e-2, weight_decay=1e-2),
            lambda _, rows: checked(module, module.loss(*(values[rows] for values in learned)), ()),
            [len(train.units_NC)],
            Plan(MAX_EPOCHS, BATCH_ROWS, seed, PATIENCE),
            lambda: float(module.loss(*held)),
        )
    return DemandModel(module, scale)


def wape(truth_CW: np.ndarray, forecast_CW: np.ndarray) -> float:
    """Weighted absolute percentage error: sum |truth - forecast| / sum truth. Raises UsageError without any units."""
    if truth_CW.shape != forecast_CW.shape or not truth_CW.sum() > 0:
        raise bseq.UsageError(f"truth {truth_CW.shape} with {truth_CW.sum()} units, forecast {forecast_CW.shape}")
    return float(np.abs(truth_CW - forecast_CW).sum() / truth_CW.sum())
