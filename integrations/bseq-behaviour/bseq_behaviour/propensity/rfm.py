"""Recency, frequency and monetary value: what anybody counts who has the log, and what our vectors have to add to.

Shape letters: U users, T events.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

import bseq_plugin as bseq
from bseq_behaviour.columns import DAY_US, TIME, USER, VALUE
from bseq_behaviour.propensity.tasks import Counts

SPANS_DAYS = (7, 28, 84, None)  # None: all of the past
N_DAYS = 1 << 20  # more days than any log has


def event_values(events: bseq.Events) -> np.ndarray:
    """float64 [T], the column ``value`` in the order of ``Sequences.from_events``. Raises SchemaError without it."""
    if VALUE not in events.frame:
        raise bseq.SchemaError(f"the log has no column {VALUE!r}; monetary features need one")
    codes = pd.factorize(events.frame[USER], sort=True)[0]
    values: np.ndarray = events.frame[VALUE].to_numpy()[np.lexsort((events.frame[TIME].to_numpy(), codes))]
    return values


def rfm_features(
    log: bseq.Sequences, at_us: int, values_T: np.ndarray | None = None, counts: Counts | None = None
) -> pd.DataFrame:
    """One row for each of U users, from events strictly before ``at_us``; NaN where there is nothing to measure.

    Columns, each for all events, and with ``counts`` also for those that count (prefix ``own_``):
    ``recency_days``, ``tenure_days``, ``gap_days`` (mean days between days with an event), and for each span of
    ``SPANS_DAYS`` ``events``, ``days`` (distinct days with an event) and with ``values_T`` ``value``.
    """
    if log.timestamps is None:
        raise bseq.SchemaError("recency needs a log with times")
    columns = _columns(log, at_us, values_T, log.timestamps < at_us, "")
    own = pd.DataFrame() if counts is None else own_features(log, at_us, counts, values_T)
    return pd.concat([pd.DataFrame(columns), own], axis=1)


def own_features(log: bseq.Sequences, at_us: int, counts: Counts, values_T: np.ndarray | None = None) -> pd.DataFrame:
    """The columns ``own_...`` of ``rfm_features`` alone: of the events that count."""
    if log.timestamps is None:
        raise bseq.SchemaError("recency needs a log with times")
    kept_T = (log.timestamps < at_us) & counts.of(log.items, log.event_types)
    return pd.DataFrame(_columns(log, at_us, values_T, kept_T, "own_"))


def _columns(
    log: bseq.Sequences, at_us: int, values_T: np.ndarray | None, kept_T: np.ndarray, prefix: str
) -> dict[str, np.ndarray]:
    users, times = log.user_index[kept_T], np.asarray(log.timestamps)[kept_T]
    first_U, last_U = np.full(log.n_users, np.nan), np.full(log.n_users, np.nan)
    first_U[users[::-1]], last_U[users] = times[::-1], times  # oldest first: the last write wins
    columns: dict[str, np.ndarray] = {}
    columns["recency_days"], columns["tenure_days"] = (at_us - last_U) / DAY_US, (at_us - first_U) / DAY_US
    for span in SPANS_DAYS:
        inside = np.ones(len(times), bool) if span is None else times >= at_us - span * DAY_US
        name = "all" if span is None else f"{span}d"
        days = np.unique(users[inside] * N_DAYS + (at_us - times[inside]) // DAY_US) // N_DAYS
        columns[f"events_{name}"] = np.bincount(users[inside], minlength=log.n_users).astype(np.float64)
        columns[f"days_{name}"] = np.bincount(days, minlength=log.n_users).astype(np.float64)
        if values_T is not None:
            weights = values_T[kept_T][inside]
            columns[f"value_{name}"] = np.bincount(users[inside], weights, minlength=log.n_users)
    gaps = columns["days_all"] - 1.0
    columns["gap_days"] = np.divide((last_U - first_U) / DAY_US, gaps, out=np.full(log.n_users, np.nan), where=gaps > 0)
    return {prefix + name: column for name, column in columns.items()}
