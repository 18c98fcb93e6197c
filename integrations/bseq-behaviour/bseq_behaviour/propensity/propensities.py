"""Propensities: heads trained on instants of the past, judged on a later one, asked about now.

Shape letters: U users, N rows, K tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

import bseq_plugin as bseq
from bseq_behaviour.columns import USER
from bseq_behaviour.propensity.curves import auroc, average_precision
from bseq_behaviour.propensity.fit_heads import FittedHeads, Rows, Weighting, fit_heads
from bseq_behaviour.propensity.inputs import Inputs, checked_inputs, user_inputs
from bseq_behaviour.propensity.instants import Instants, past_instants
from bseq_behaviour.propensity.labels import known_users, labels, require_both_classes
from bseq_behaviour.propensity.tasks import Counts, Task


@dataclass(frozen=True)
class Question:
    """A model and a log with the tasks asked of it.

    Attributes:
        log_end_us: up to when the log is complete.
        allow_future_model: also instants before the end of training, whose vectors know what came after.
    """

    model: bseq.InterestModel
    log: bseq.Sequences
    tasks: tuple[Task, ...]
    counts: tuple[Counts, ...]
    log_end_us: int
    active_days: float | None = None
    allow_future_model: bool = False

    @classmethod
    def of(
        cls,
        model: bseq.InterestModel,
        log: bseq.Sequences,
        tasks: Sequence[str],
        *,
        items: pd.DataFrame | None = None,
        log_end_us: int | None = None,
        active_days: float | None = None,
        allow_future_model: bool = False,
        until_us: int | None = None,
    ) -> Question:
        """From texts such as ``churn:28``; the log is taken to be complete up to its newest event.

        ``until_us``: nothing from this instant on is known, to the heads neither; default: the end of the log.

        Raises UsageError for a task that is none or is there twice, SchemaError for a log without times.
        """
        if log.timestamps is None or log.n_events == 0:
            raise bseq.SchemaError("tasks ask what comes after an instant: they need a log with times")
        asked = tuple(Task.parse(text) for text in tasks)
        if not asked:
            raise bseq.UsageError("there is no task; name one, for example churn:28")
        if len({task.name for task in asked}) < len(asked):
            raise bseq.UsageError(f"a task is there twice in {[task.name for task in asked]}")
        counts = tuple(task.counts(model.vocabulary, items) for task in asked)
        end_us = int(log.timestamps.max()) + 1 if log_end_us is None else log_end_us
        if until_us is not None and until_us < end_us:
            log, end_us = log.known_at(until_us), until_us
            if log.n_events == 0:
                raise bseq.SchemaError("nobody has an event before that instant; choose a later one")
        return cls(model, log, asked, counts, end_us, active_days, allow_future_model)

    @property
    def window_us(self) -> int:
        """The longest window."""
        return max(task.window_us for task in self.tasks)

    def instants(self) -> Instants:
        """The latest instant with an answer to judge at; for training every 7 days from the end of the model's own.

        Raises SchemaError if the log after the model's training is too short.
        """
        return past_instants(self.model, self.log, self.window_us, self.log_end_us, self.allow_future_model)

    def inputs(self, at_us: int, users: np.ndarray, inputs: Inputs) -> np.ndarray:
        """float32 [N, D] of the users at these places."""
        asked = list(zip(self.tasks, self.counts, strict=True))
        values_T = None if self.log.values is None else np.nan_to_num(self.log.values)  # no value: no money
        every = user_inputs(self.model, self.log, at_us, asked, inputs, values_T, self.allow_future_model)
        chosen: np.ndarray = every[users]
        return chosen

    def rows(self, instants: Sequence[int], inputs: Inputs) -> Rows:
        """Everybody known at each instant, with the answers."""
        parts = []
        for at_us in instants:
            users = known_users(self.log, at_us, self.active_days)
            answers = [
                labels(self.log, task, counts, at_us, self.log_end_us)[users]
                for task, counts in zip(self.tasks, self.counts, strict=True)
            ]
            parts.append((self.inputs(at_us, users, inputs), np.stack(answers, axis=1)))
        return Rows(np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts]))


@dataclass(frozen=True)
class Propensities:
    """Trained heads, and how well they did on an instant that they had not seen.

    Attributes:
        quality: columns task, rate (share of yes), auroc, average_precision; one row a task.
    """

    heads: FittedHeads
    quality: pd.DataFrame
    instants: Instants


def fit_propensities(
    question: Question,
    *,
    inputs: str = "both",
    head: str = "mlp",
    options: dict[str, Any] | None = None,
    weighting: Weighting = "equal",
    seed: int = 0,
) -> Propensities:
    """Train the heads on all but the last instant, stop and judge them on that one.

    Raises:
        SchemaError: too short a log, or a task with one answer only, in training or at the instant of judgement.
        UsageError: an unknown head or inputs; a model that knows what came after.
        RecipeError: an option that the head does not take.
        PluginError: a head that gives nonsense.
        BseqError: the loss is no longer finite.
    """
    chosen = checked_inputs(inputs)
    instants = question.instants()
    train, validation = question.rows(instants.train_us, chosen), question.rows([instants.validation_us], chosen)
    for where, rows in (("in training", train), ("at the instant they are judged at", validation)):
        for place, task in enumerate(question.tasks):
            require_both_classes(rows.labels_NK[:, place], task, where)
    names = tuple(task.name for task in question.tasks)
    heads = fit_heads(
        train, validation, names, digest=question.model.digest, inputs=chosen, head=head, options=options,
        weighting=weighting, seed=seed,
    )  # fmt: skip
    chances_NK = heads.predict(validation.inputs_ND)
    columns = [(validation.labels_NK[:, place], chances_NK[:, place]) for place in range(len(names))]
    quality = pd.DataFrame(
        {
            "task": names,
            "rate": [float(truth.mean()) for truth, _ in columns],
            "auroc": [auroc(truth, chances) for truth, chances in columns],
            "average_precision": [average_precision(truth, chances) for truth, chances in columns],
        }
    )
    return Propensities(heads, quality, instants)


def score(question: Question, heads: FittedHeads, at_us: int | None = None) -> pd.DataFrame:
    """user_id, at, and for each task the chance of a yes in the days from ``at``; everybody known at ``at``.

    ``at_us``: default: the end of the log.
    """
    names = tuple(task.name for task in question.tasks)
    if heads.tasks != names or heads.digest != question.model.digest:
        raise bseq.UsageError(
            f"the heads answer {list(heads.tasks)} for another model or question; asked are {list(names)}"
        )
    now_us = question.log_end_us if at_us is None else at_us
    users = known_users(question.log, now_us, question.active_days)
    if not len(users):
        raise bseq.SchemaError("nobody has an event before that instant; choose a later one")
    chances_NK = heads.predict(question.inputs(now_us, users, checked_inputs(heads.inputs)))
    table = pd.DataFrame({USER: question.log.user_ids[users], "at": pd.Timestamp(now_us, unit="us", tz="UTC")})
    return table.assign(**{name: chances_NK[:, place] for place, name in enumerate(names)})
