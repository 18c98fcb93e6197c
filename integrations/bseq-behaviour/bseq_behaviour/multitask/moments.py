"""What there is to learn at an instant: who was known, and everything that followed.

Shape letters: B users, X context columns, K yes-or-no tasks, C categories, V items, P popularity columns, S targets.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

import bseq_plugin as bseq
from bseq_behaviour.columns import DAY_US
from bseq_behaviour.demand.demand import RECENT_WEEKS, user_demand
from bseq_behaviour.propensity.labels import WEEK_US, known_users, labels
from bseq_behaviour.propensity.rfm import rfm_features
from bseq_behaviour.propensity.tasks import Counts, Task
from bseq_behaviour.propensity.vectors import check_instant, check_log

NEXT_ITEM, ALL_ACTION, TASKS, DEMAND = "next_item", "all_action", "tasks", "demand"


@dataclass(frozen=True)
class Objectives:
    """What is learned together.

    Attributes:
        tasks: yes-or-no questions with the events that count.
        next_item: the first known item of the ``next_item_days`` from the instant.
        all_action_days: every distinct item of so many days; None: not learned.
        category_V: int64 [V + 1], 0..C-1 or -1, for the units of each category in the next week; None: not learned.
    """

    tasks: tuple[tuple[Task, Counts], ...] = ()
    next_item: bool = False
    all_action_days: float | None = None
    category_V: np.ndarray | None = None
    next_item_days: float = 28.0

    def __post_init__(self) -> None:
        if not self.next_item_days > 0 or not (self.all_action_days is None or self.all_action_days > 0):
            raise bseq.UsageError(
                f"next_item_days = {self.next_item_days}, all_action_days = {self.all_action_days}; give positive "
                "numbers of days"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """In the order of the losses. Raises UsageError if there is none."""
        names = [NEXT_ITEM] * self.next_item + [ALL_ACTION] * (self.all_action_days is not None)
        names += [task.name for task, _ in self.tasks] + [DEMAND] * (self.category_V is not None)
        if not names:
            raise bseq.UsageError("there is nothing to learn: name a task, next_item, all_action_days or category_V")
        return tuple(names)

    def alone(self, name: str) -> Objectives:
        """Only the objective called ``name``."""
        return Objectives(
            tuple(pair for pair in self.tasks if pair[0].name == name),
            self.next_item and name == NEXT_ITEM,
            self.all_action_days if name == ALL_ACTION else None,
            self.category_V if name == DEMAND else None,
            self.next_item_days,
        )

    @property
    def answers(self) -> frozenset[str]:
        """What heads are asked for: ``names``, with all yes-or-no tasks as one."""
        tasks = {task.name for task, _ in self.tasks}
        return frozenset(TASKS if name in tasks else name for name in self.names)

    @property
    def n_categories(self) -> int:
        """C."""
        return 0 if self.category_V is None else int(self.category_V.max()) + 1

    @property
    def window_us(self) -> int:
        """The longest look ahead; an instant needs so much of the log after it."""
        days = [task.days for task, _ in self.tasks] + [
            self.all_action_days or 0.0,
            7.0 * (self.category_V is not None),
            self.next_item_days * self.next_item,
        ]
        return round(max(days) * DAY_US)


@dataclass(frozen=True)
class Moment:
    """Everybody known at an instant, with what followed.

    Attributes:
        users: int64 [B], places in the log.
        histories: B users, as long as the encoder reads.
        context_BX: float32, logs of recency and frequency.
        priors_VP: float32 [V + 1, P], popularity at the instant, or None.
        next_B: int64, vocabulary row of the next item, 0 = none.
        targets: (int64 offsets [B + 1], rows [S]) of the items of the window.
        labels_BK, units_BC: float32.
        recent_BC: float32, units a week of the ``RECENT_WEEKS`` before.
    """

    users: np.ndarray
    histories: bseq.Sequences
    context_BX: np.ndarray
    priors_VP: np.ndarray | None
    next_B: np.ndarray
    targets: tuple[np.ndarray, np.ndarray]
    labels_BK: np.ndarray
    units_BC: np.ndarray
    recent_BC: np.ndarray

    def take(self, users: np.ndarray) -> Moment:
        """Only the users at these places."""
        offsets, rows = self.targets
        lengths = np.diff(offsets)[users]
        ends = np.cumsum(lengths)
        chosen = np.arange(ends[-1] if len(ends) else 0) + np.repeat(offsets[:-1][users] - (ends - lengths), lengths)
        return replace(
            self,
            users=self.users[users],
            histories=self.histories.take(users),
            context_BX=self.context_BX[users],
            next_B=self.next_B[users],
            targets=(np.concatenate([[0], ends]), rows[chosen]),
            labels_BK=self.labels_BK[users],
            units_BC=self.units_BC[users],
            recent_BC=self.recent_BC[users],
        )


def moment(
    model: bseq.InterestModel,
    log: bseq.Sequences,
    at_us: int,
    objectives: Objectives,
    log_end_us: int,
    allow_future_model: bool = False,
) -> Moment:
    """Read the log at an instant, and what followed.

    Args:
        allow_future_model: take a model too that was trained on what came after: its interests know some answers, and
            what is learned from them is worth less later.

    Raises:
        UsageError: the model knows the future.
        SchemaError: a window ends after ``log_end_us``, nobody has an event before the instant, or the log lacks what
            the encoder reads.
    """
    check_instant(model, at_us, allow_future_model)
    if at_us + objectives.window_us > log_end_us:
        raise bseq.SchemaError(
            f"the longest window, {objectives.window_us / DAY_US:g} days, ends after the log does; choose an earlier "
            "instant"
        )
    known = moment_without_answers(model, log, at_us, objectives, allow_future_model)
    users, n_rows = known.users, model.vocabulary.n_items + 1
    answers = [labels(log, task, counts, at_us, log_end_us)[users] for task, counts in objectives.tasks]
    units_BC = known.units_BC
    if objectives.category_V is not None:
        units_BC = user_demand(log, objectives.category_V, objectives.n_categories, at_us)[users]
    soon = log.between(at_us, at_us + round(objectives.next_item_days * DAY_US)).known().take(users)
    next_B = np.zeros(len(users), np.int64)
    next_B[soon.lengths > 0] = soon.items[soon.offsets[:-1][soon.lengths > 0]]
    window_us = round((objectives.all_action_days or 0.0) * DAY_US)
    window = log.between(at_us, at_us + window_us).known().take(users)
    pairs = np.unique(window.user_index * n_rows + window.items)
    owner, rows = pairs // n_rows, pairs % n_rows
    targets = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=len(users)))]), rows
    labels_BK = np.stack(answers, axis=1) if answers else known.labels_BK
    return replace(known, next_B=next_B, targets=targets, labels_BK=labels_BK, units_BC=units_BC)


def moment_without_answers(
    model: bseq.InterestModel, log: bseq.Sequences, at_us: int, objectives: Objectives, allow_future_model: bool = False
) -> Moment:
    """Read only what is known at an instant: no next item and no targets, NaN for labels and units.

    Raises UsageError and SchemaError as ``moment``, which needs the windows to be over.
    """
    check_log(model, log, at_us, allow_future_model)
    users = known_users(log, at_us)
    if not len(users):
        raise bseq.SchemaError("nobody has an event before that instant; choose a later one")
    days, n_categories = model.recipe.popularity_days, objectives.n_categories
    recent_BC = np.zeros((len(users), 0), np.float32)
    if objectives.category_V is not None:
        since_us = at_us - RECENT_WEEKS * WEEK_US
        recent = user_demand(log, objectives.category_V, n_categories, since_us, RECENT_WEEKS)
        recent_BC = recent[users] / RECENT_WEEKS
    counts = rfm_features(log, at_us).to_numpy()[users]
    return Moment(
        users,
        log.known_at(at_us).take(users).latest(model.recipe.encoder.max_length),
        np.log1p(np.maximum(counts, 0)).astype(np.float32),
        bseq.PopularityPrior(log, model.vocabulary.n_items, days).at(at_us) if days else None,
        np.zeros(len(users), np.int64),
        (np.zeros(len(users) + 1, np.int64), np.zeros(0, np.int64)),
        np.full((len(users), len(objectives.tasks)), np.nan, np.float32),
        np.full((len(users), n_categories), np.nan, np.float32),
        recent_BC,
    )
