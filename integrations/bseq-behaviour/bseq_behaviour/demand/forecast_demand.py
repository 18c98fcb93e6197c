"""The demand of the week that follows an instant, learned from the weeks before it and judged on the last of them.

Shape letters: U users, C categories.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

import bseq_plugin as bseq
from bseq_behaviour.columns import DAY_US
from bseq_behaviour.demand.demand import RECENT_WEEKS, DemandRows, fit_demand, user_demand, wape
from bseq_behaviour.propensity.instants import log_until
from bseq_behaviour.propensity.labels import WEEK_US, weekly_demand
from bseq_behaviour.propensity.vectors import user_vectors

MAX_TRAIN_WEEKS = 12


@dataclass(frozen=True)
class Forecast:
    """Units of C categories in the week from ``at_us``.

    Attributes:
        units_C: float32, expected.
        before_C: int64, in the week before ``at_us``.
        wape: of the same model, for the week before ``at_us``, which it was stopped on but not fitted to.
        naive_wape: for that week, of the forecast that it will be as the week before it.
        mean_wape: for that week, of the mean of the four weeks before it.
        n_weeks: that it learned from.
    """

    at_us: int
    units_C: np.ndarray
    before_C: np.ndarray
    wape: float
    naive_wape: float
    mean_wape: float
    n_weeks: int


def forecast_demand(
    model: bseq.InterestModel,
    log: bseq.Sequences,
    category_V: np.ndarray,
    n_categories: int,
    at_us: int | None = None,
    *,
    allow_future_model: bool = False,
    seed: int = 0,
    head: str = "kept_share",
    options: Mapping[str, Any] | None = None,
) -> Forecast:
    """Train a ``DemandModel`` on up to 12 weeks between the model's training and the last week before ``at_us``, judge
    it on that week, and forecast the next.

    Args:
        category_V: int64 [V + 1], 0..C-1, or -1 for items that are not counted.
        at_us: nothing from here on is known; default: the end of the log.
        head, options: a count head and its settings.

    Raises:
        UsageError, RecipeError: an unknown head or option; an instant more than a day after the newest event.
        PluginError: a head that gives nonsense.
        SchemaError: a log without times or too short after the model's training, or a last week without units.
    """
    log, now_us = log_until(log, at_us)
    instants = _instants(model, log, now_us, allow_future_model)

    def rows(instant: int) -> DemandRows:
        recent = user_demand(log, category_V, n_categories, instant - RECENT_WEEKS * WEEK_US, RECENT_WEEKS)
        vectors = user_vectors(model, log, instant, allow_future_model).numpy()
        return DemandRows(vectors, recent / RECENT_WEEKS, user_demand(log, category_V, n_categories, instant))

    *train, held = (rows(instant) for instant in instants)
    joined = [np.concatenate([getattr(part, name) for part in train]) for name in DemandRows.__dataclass_fields__]
    fitted = fit_demand(DemandRows(*joined), held, seed, head=head, options=options)
    now = rows(now_us)
    past = weekly_demand(log, category_V, n_categories, now_us - 5 * WEEK_US, 5)
    judged = fitted.rates(held.vectors_ND, held.recent_NC).sum(0)[:, None]
    return Forecast(
        now_us,
        fitted.rates(now.vectors_ND, now.recent_NC).sum(0),
        past[:, 4],
        wape(past[:, 4:], judged),
        wape(past[:, 4:], past[:, 3:4]),
        wape(past[:, 4:], past[:, :4].mean(1, keepdims=True)),
        len(train),
    )


def _instants(model: bseq.InterestModel, log: bseq.Sequences, now_us: int, allow_future_model: bool) -> list[int]:
    """Beginnings of complete weeks up to ``now_us``, oldest first; the last one is for judging."""
    first_us = int(np.asarray(log.timestamps).min()) + WEEK_US
    if model.trained_until_us is not None and not allow_future_model:
        first_us = max(first_us, model.trained_until_us + 1)
    n_weeks = min((now_us - first_us) // WEEK_US, MAX_TRAIN_WEEKS + 1)
    if n_weeks < 2:
        raise bseq.SchemaError(
            f"there are {max(0, now_us - first_us) / DAY_US:.0f} days after the model's training; two weeks are "
            "needed, to learn from and to be judged on: hold more out when training (split = 'time', an earlier "
            "validation_at), give a newer log, or take weeks that the model has seen as well (in sample)"
        )
    return [now_us - week * WEEK_US for week in range(n_weeks, 0, -1)]
