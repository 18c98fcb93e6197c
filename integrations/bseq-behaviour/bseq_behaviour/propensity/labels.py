"""What came after an instant, and who is asked about it. Nothing at or after ``at`` decides who is asked.

Shape letters: U users, T events, C categories, W weeks.
"""

from __future__ import annotations

import numpy as np

import bseq_plugin as bseq
from bseq_behaviour.columns import DAY_US
from bseq_behaviour.propensity.tasks import Counts, Task

WEEK_US = 7 * DAY_US


def known_users(log: bseq.Sequences, at_us: int, active_days: float | None = None) -> np.ndarray:
    """int64, ascending places of the users with an event before ``at_us``, within ``active_days`` of it if given."""
    if active_days is not None and not active_days > 0:
        raise bseq.UsageError(f"active_days = {active_days}; give a positive number of days")
    start = None if active_days is None else at_us - round(active_days * DAY_US)
    return np.flatnonzero(log.known_at(at_us).between(start, None).lengths)


def labels(log: bseq.Sequences, task: Task, counts: Counts, at_us: int, log_end_us: int) -> np.ndarray:
    """float32 [U], 1 = yes: the task's answer over [at, at + days).

    Args:
        log_end_us: up to when the log is complete; a window beyond it has no answer yet.

    Raises:
        SchemaError: the log has no times, or the window ends after ``log_end_us``.
    """
    if at_us + task.window_us > log_end_us:
        raise bseq.SchemaError(
            f"task {task.name!r}: its window ends after the log does, so that nobody knows the answer yet; choose an "
            f"instant at least {task.days:g} days before the end"
        )
    window = log.between(at_us, at_us + task.window_us)
    counted_T = counts.of(window.items, window.event_types)
    found_U = np.bincount(window.user_index[counted_T], minlength=log.n_users) > 0
    wanted_U = ~found_U if task.kind == "churn" else found_U
    return wanted_U.astype(np.float32)


def require_both_classes(labels_N: np.ndarray, task: Task, where: str) -> None:
    """Raises SchemaError if all answers are the same: there is nothing to learn, and no AUROC."""
    n_yes = int(labels_N.sum())
    if n_yes in (0, len(labels_N)):
        raise bseq.SchemaError(
            f"task {task.name!r}: all {len(labels_N)} answers {where} are {'yes' if n_yes else 'no'}; choose another "
            "number of days, or other events that count"
        )


def weekly_demand(
    log: bseq.Sequences, category_V: np.ndarray, n_categories: int, start_us: int, n_weeks: int
) -> np.ndarray:
    """int64 [C, W], events of each category in each of ``n_weeks`` weeks from ``start_us``.

    Args:
        category_V: int64 [V + 1], 0..C-1, or -1 for items that are not counted; row 0 is the unknown items'.
    """
    window = log.between(start_us, start_us + n_weeks * WEEK_US)
    categories_T = category_V[window.items]
    weeks_T = (np.asarray(window.timestamps) - start_us) // WEEK_US
    kept_T = categories_T >= 0
    flat = np.bincount(categories_T[kept_T] * n_weeks + weeks_T[kept_T], minlength=n_categories * n_weeks)
    return flat.reshape(n_categories, n_weeks)
