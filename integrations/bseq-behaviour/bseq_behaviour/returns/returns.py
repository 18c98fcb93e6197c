"""Who comes back within so many days of now: a ``ReturnTime`` trained on the past, judged on its end, asked about now.

Shape letters: U users, A numbers of days that are asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

import bseq_plugin as bseq
from bseq_behaviour.columns import USER
from bseq_behaviour.propensity.curves import auroc, average_precision
from bseq_behaviour.propensity.instants import log_until
from bseq_behaviour.propensity.labels import known_users, labels, require_both_classes
from bseq_behaviour.propensity.tasks import Counts, Task
from bseq_behaviour.returns.fit_return_time import fit_return_time
from bseq_behaviour.returns.return_time import ReturnTime, checked_days


@dataclass(frozen=True)
class Returns:
    """Chances of a return, and how well they did on the latest instant whose answers are known.

    Attributes:
        chances: user_id, at, and for each number of days ``within_7``; a row for everybody with an event before ``at``.
        quality: columns days, rate (share of returns), expected (mean chance), auroc, average_precision.
        model: it has learned from what was before the instant of judgement.
    """

    chances: pd.DataFrame
    quality: pd.DataFrame
    model: ReturnTime


def forecast_returns(
    log: bseq.Sequences, days: Sequence[float], at_us: int | None = None, recipe: bseq.Recipe | None = None
) -> Returns:
    """Train on all visits before the last ``max(days)`` days before ``at_us``, judge there, and ask about ``at_us``.

    Args:
        at_us: nothing from here on is known; default: the end of the log.
        recipe: as of ``fit_return_time``.

    Raises:
        UsageError: no number of days, or one out of range or there twice; an instant more than a day after the newest
            event.
        SchemaError: too short a log, or one where everybody came back, or nobody; else as ``fit_return_time``.
    """
    days = checked_days(days)
    log, now_us = log_until(log, at_us)
    tasks = [Task("purchase", asked) for asked in days]
    held_us = now_us - max(task.window_us for task in tasks)
    known = known_users(log, held_us)
    if not len(known):
        raise bseq.SchemaError(
            f"nobody has an event more than {max(days):g} days before the end: returns within that can not be learned; "
            "ask for fewer days, or give a longer log"
        )
    answers_UA = np.stack([labels(log, task, Counts(None, None), held_us, now_us)[known] for task in tasks], axis=1)
    for place, task in enumerate(tasks):
        require_both_classes(answers_UA[:, place], task, "at the instant they are judged at")
    model = fit_return_time(log, held_us, recipe)
    said_UA = model.within(log, held_us, days)[known]
    rows = [
        (asked, truth.mean(), said.mean(), auroc(truth, said), average_precision(truth, said))
        for asked, truth, said in zip(days, answers_UA.T, said_UA.T, strict=True)
    ]
    now = known_users(log, now_us)
    chances_UA = model.within(log, now_us, days)[now]
    table = pd.DataFrame({USER: log.user_ids[now], "at": pd.Timestamp(now_us, unit="us", tz="UTC")})
    return Returns(
        table.assign(**{f"within_{asked:g}": chances_UA[:, place] for place, asked in enumerate(days)}),
        pd.DataFrame(rows, columns=["days", "rate", "expected", "auroc", "average_precision"]),
        model,
    )
