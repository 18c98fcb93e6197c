"""Several futures of everybody from an instant on: learned together from the instants before, judged on the latest.

Shape letters: B users, K yes-or-no tasks, C categories.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

import bseq_plugin as bseq
from bseq_behaviour.columns import ITEM, USER
from bseq_behaviour.multitask.fit_multitask import MultiTaskFit, fit_multitask
from bseq_behaviour.multitask.moments import Moment, Objectives, moment, moment_without_answers
from bseq_behaviour.multitask.multitask import K_ITEMS, Heads, chosen_heads
from bseq_behaviour.propensity.fit_heads import Weighting
from bseq_behaviour.propensity.instants import Instants, log_until, past_instants
from bseq_behaviour.propensity.labels import require_both_classes

TRAIN_INSTANTS = 8


@dataclass(frozen=True)
class SeveralFutures:
    """What a multi-task model says of everybody with an event before an instant.

    Attributes:
        users: user_id, at, and for each yes-or-no task the chance of a yes.
        items: user_id, objective ("next_item", "all_action"), rank, item_id; no rows if neither was learned.
        units_C: float32, units of each category that are expected in the week, all users together.
        quality: by objective, on the latest instant whose answers are known; see ``Answers.metrics``.
        fit: the model, which has learned from earlier instants.
    """

    users: pd.DataFrame
    items: pd.DataFrame
    units_C: np.ndarray
    quality: dict[str, float]
    fit: MultiTaskFit
    instants: Instants


def forecast_multitask(
    model: bseq.InterestModel,
    log: bseq.Sequences,
    objectives: Objectives,
    at_us: int | None = None,
    *,
    k: int = K_ITEMS,
    heads: Heads | None = None,
    weighting: Weighting = "equal",
    importance: Mapping[str, float] | None = None,
    epochs: int = 6,
    allow_future_model: bool = False,
    seed: int = 0,
) -> SeveralFutures:
    """Train the encoder on at up to ``TRAIN_INSTANTS`` instants, stop and judge it on the latest with known answers,
    and ask it about ``at_us``.

    Args:
        at_us: nothing from here on is known; default: the end of the log.
        k: items a user of each objective that has items.
        heads, weighting, importance, epochs: see ``fit_multitask``.
        allow_future_model: also instants before the end of the model's training.

    Raises as ``past_instants``, ``log_until`` and ``fit_multitask``; SchemaError also for a task with one answer only.
    """
    if k < 1:
        raise bseq.UsageError(f"k = {k}; give 1 or more")
    chosen_heads(heads or {}, objectives)  # what there is not is refused before the work
    log, now_us = log_until(log, at_us)
    instants = past_instants(model, log, objectives.window_us, now_us, allow_future_model).latest(TRAIN_INSTANTS)
    train = [moment(model, log, us, objectives, now_us, allow_future_model) for us in instants.train_us]
    held = moment(model, log, instants.validation_us, objectives, now_us, allow_future_model)
    _require_answers(objectives, train, held)
    how: dict[str, Any] = {"heads": heads, "weighting": weighting, "importance": importance}
    fit = fit_multitask(model, train, held, objectives, epochs=epochs, seed=seed, **how)
    now = moment_without_answers(model, log, now_us, objectives, allow_future_model)
    said = fit.model.predict(now, k)
    user_ids = log.user_ids[now.users]
    users = pd.DataFrame({USER: user_ids, "at": pd.Timestamp(now_us, unit="us", tz="UTC")})
    chances = {task.name: said.chances_BK[:, place] for place, (task, _) in enumerate(objectives.tasks)}
    items = [_ranked(name, user_ids, top_BK, model.vocabulary) for name, top_BK in said.top.items()]
    none = pd.DataFrame(columns=[USER, "objective", "rank", ITEM])
    return SeveralFutures(
        users.assign(**chances),
        pd.concat(items, ignore_index=True) if items else none,
        said.rates_BC.sum(0),
        fit.model.judge(held),
        fit,
        instants,
    )


def _require_answers(objectives: Objectives, train: list[Moment], held: Moment) -> None:
    for where, moments in (("in training", train), ("at the instant they are judged at", [held])):
        labels_NK = np.concatenate([part.labels_BK for part in moments])
        for place, (task, _) in enumerate(objectives.tasks):
            require_both_classes(labels_NK[:, place], task, where)


def _ranked(name: str, user_ids: np.ndarray, top_BK: np.ndarray, vocabulary: bseq.Vocabulary) -> pd.DataFrame:
    """Return a row for each user and item, the likeliest first; places beyond the catalogue are left out."""
    n_users, k = top_BK.shape
    there = top_BK.ravel() > 0
    table = pd.DataFrame({USER: np.repeat(user_ids, k)[there], "objective": name})
    table["rank"] = np.tile(np.arange(1, k + 1), n_users)[there]
    table[ITEM] = vocabulary.item_ids[top_BK.ravel()[there] - 1]
    return table
