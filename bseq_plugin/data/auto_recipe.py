"""The recipe ``auto``: settings that follow from a log's size, lengths and span, and from what is held out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bseq_plugin.data.partitions import PartitionedSequences
from bseq_plugin.errors import UsageError
from bseq_plugin.events.events import DAY_US, ITEM, TIME, USER, Events, instant_us
from bseq_plugin.recipe.data import TimeSplit
from bseq_plugin.recipe.merge import apply_settings, replaced, value_at
from bseq_plugin.recipe.recipe import Recipe

AUTO = "auto"
AUTO_DESCRIPTION = (
    "Chosen from the log: its numbers of users, items and events and the lengths of its histories. With split = 'time' "
    "for all that is wanted within split.horizon_days, where the log spans four of these."
)
WHOLE_CATALOGUE = 4_096  # items up to which targets are told apart from all of them: sampling would save little
N_NEGATIVES = 1_024
NARROW, WIDE = 64, 128  # width for more items than that: they have more to be told apart by
EVENTS_A_BATCH = 768
TARGETS = 5_000_000  # that a schedule goes through, again and again; a short log is not gone through more often than
MOST_EPOCHS, FEWEST_EPOCHS = 40, 8
VALIDATE_EVERY = 3
SMALL = 500_000  # events below which a model overfits first, whatever the lengths
ENSEMBLE = 3  # encoders whose scores are averaged on a small log: it costs minutes, and what they overfit to differs
HORIZONS = 2  # that a log must span before its validation: one to learn a window from, and a past before that
STRAY = 0.05  # share of the oldest events that do not count for the span: a few may have wrong dates
POPULARITY_HORIZONS = (0.25, 1.0, 13.0)  # with horizons of four weeks: of a week, of four, of a year
HALF_LIFE_HORIZONS = 4.0
EVERY_ITEM = 100_000  # items up to which a window's softmax goes over all: there is one state a user, not an event
WINDOW_NEGATIVES = 16_384
WINDOW_EPOCHS, FEWEST_WINDOW_EPOCHS, USERS_OF_AN_EPOCH = 16, 4, 100_000
USERS_OF_A_SMALL_EPOCH = 16_000  # a pass over few users is a handful of batches: then there are more of them


def auto_recipe(events: Events, asked: Mapping[str, Any] | None = None, *, horizon_days: float | None = None) -> Recipe:
    """Return the recipe for ``events`` and what is asked of them.

    Only counts of users, items and events decide, and for windows the log's span; never what comes last. With a time
    split all of them are those of the log before the validation.

    Args:
        asked: settings by hand, which stand in the recipe, as a recipe has them: ``{"split": {"kind": "time"},
            "encoder": {"dropout": 0.3}}``. ``split`` says what is held out; with ``wants_window`` it is
            ``window_recipe``, else ``next_recipe``.
        horizon_days: predict all that is wanted within so many days: a time split of that horizon.

    Raises RecipeError for settings that are unknown or contradict the recipe.
    """
    held_out = {} if horizon_days is None else {"split": {"kind": "time", "horizon_days": horizon_days}}
    given = replaced(Recipe, held_out, asked or {})
    _roomiest(given).replace(**given)
    return _suited(events, given).replace(**given)


def choose_recipe(
    recipe: Recipe | str | Path | None,
    settings: Iterable[str] = (),
    events: Events | PartitionedSequences | None = None,
) -> Recipe:
    """Return the recipe that is named, with ``key=value`` settings over it: what ``--recipe`` and ``--set`` choose.

    Args:
        recipe: a recipe, the name of a shipped one, a .toml file, or "auto"; None: the default.
        events: the log that "auto" looks at. Without it the answer only shows whether the settings can be right.

    Raises RecipeError for an unknown name or setting, UsageError for "auto" and partitions.
    """
    settings = list(settings)
    if recipe != AUTO:
        chosen = recipe if isinstance(recipe, Recipe) else Recipe() if recipe is None else Recipe.load(recipe)
        return chosen.with_settings(settings)
    if isinstance(events, PartitionedSequences):
        raise UsageError("--recipe auto needs the log in memory; name another recipe for partitioned sequences")
    asked = apply_settings(Recipe, {}, settings)
    checked = _roomiest(asked).with_settings(settings)  # also without events: can the settings be right at all?
    return checked if events is None else _suited(events, asked).with_settings(settings)


def _roomiest(asked: Mapping[str, Any]) -> Recipe:
    """The recipe in which a setting has a meaning if it has one in any that ``_suited`` may choose."""
    if wants_window(asked):
        return Recipe(objective="window", negatives="mixed", vectors={"similarity": "cosine"})
    return Recipe(negatives="mixed")


def _suited(events: Events, asked: Mapping[str, Any]) -> Recipe:
    days = float(value_at(asked, "split.horizon_days") or TimeSplit().horizon_days)
    timed = value_at(asked, "split.kind") == "time"
    known = _before_validation(events, value_at(asked, "split.validation_at"), days) if timed else events
    if wants_window(asked) and known.has_times and (value_at(asked, "objective.kind") or _spans(known, days)):
        return window_recipe(known, float(value_at(asked, "objective.days") or days))
    return next_recipe(known)


def wants_window(asked: Mapping[str, Any]) -> bool:
    """Return whether ``window_recipe`` is asked for: by that objective, or a time split and nothing against it."""
    kind = value_at(asked, "objective.kind")
    if kind is not None:
        return bool(kind == "window")
    return (
        value_at(asked, "split.kind") == "time"
        and value_at(asked, "encoder.name") in (None, "mean")
        and value_at(asked, "vectors.ensemble") in (None, 1)
    )


def _before_validation(events: Events, validation_at: str | None, days: float) -> Events:
    if not events.has_times:
        return events
    at_us = int(events.frame[TIME].max()) + 1 - int(2 * days * DAY_US)
    if validation_at:
        at_us = instant_us(validation_at, "validation_at")
    known = events.before(at_us)
    return known if len(known) else events  # whoever splits it says what is wrong


def _spans(events: Events, days: float) -> bool:
    times = events.frame[TIME].to_numpy()
    return bool(times.max() - np.quantile(times, STRAY) >= HORIZONS * days * DAY_US)


def window_recipe(events: Events, horizon_days: float) -> Recipe:
    """For all that a user wants within ``horizon_days`` of an instant.

    - ``objective``: windows of that length, the instants a quarter of it apart; ``passes_per_epoch``: more where there
      are few users; ``popularity_days``: a quarter of it, as long, and 13 times as long. What is in fashion changes
      faster than a model is trained again; ``bseq evaluate`` reads these columns off the log at the cut, ``bseq publish
      --log`` at its end.
    - ``encoder``: ``mean`` with a half life; over weeks the order of the last few events says little.
    - ``vectors.similarity``: cosine with a high temperature, so that taste begins as a small correction of popularity;
      higher, so a smaller correction, for a small log, which tells less of it.
    - ``negatives``: the whole catalogue up to 100,000 items, else a mixed sample.
    - ``training.epochs``: fewer where there are very many users.
    """
    n_users, n_items = int(events.frame[USER].nunique()), int(events.frame[ITEM].nunique())
    small = len(events) < SMALL
    epochs = int(np.clip(WINDOW_EPOCHS * USERS_OF_AN_EPOCH // n_users, FEWEST_WINDOW_EPOCHS, WINDOW_EPOCHS))
    encoder = {
        "name": "mean",
        "max_length": 256,
        "dropout": 0.1,
        "half_life_days": HALF_LIFE_HORIZONS * horizon_days,
        "feed_forward": 128,
        "event_dropout": 0.1,
    }
    objective = {
        "kind": "window",
        "days": horizon_days,
        "step_days": horizon_days / 4,
        "passes_per_epoch": int(np.clip(USERS_OF_A_SMALL_EPOCH // n_users, 2, 16)) if small else 2,
        "popularity_days": [horizon_days * share for share in POPULARITY_HORIZONS],
    }
    return Recipe(
        encoder=encoder,
        vectors={"similarity": {"kind": "cosine", "temperature": 1.0 if small else 0.5}, "init": 0.05},
        events={"features": ()},
        objective=objective,
        negatives={"kind": "mixed", "n": WINDOW_NEGATIVES} if n_items > EVERY_ITEM else "all",
        split={"patience": epochs},
        training={"batch": {"users": 256}, "epochs": epochs, "schedule": "cosine"},
    )


def next_recipe(events: Events) -> Recipe:
    """For the next event.

    - ``vectors.dim``: 128 for a large catalogue, else 64, for each encoder of the ensemble.
    - ``encoder.max_length``: the length that 95 of 100 histories stay within, between 50 and 200.
    - ``negatives``: the whole catalogue if it is small, else a mixed sample.
    - ``encoder.dropout``: 0.5 for a small log, 0.2 for a large one; a small one also has its labels smoothed and an
      ensemble of three encoders.
    - ``training.epochs``: of a cosine schedule, so many that all logs learn from a like number of targets.
    - batches hold a like number of events, whatever the lengths.

    The encoder is ``causal`` with most of its first half given to the frequency filter: what is wanted next depends
    on the last few events first. docs/results.md has what it reaches.
    """
    lengths = events.frame[USER].value_counts().to_numpy()
    n_items = int(events.frame[ITEM].nunique())
    max_length = int(np.clip(np.ceil(np.percentile(lengths, 95)), 50, 200))
    targets = int(np.minimum(lengths, max_length).sum())
    small, large_catalogue = len(events) < SMALL, n_items > WHOLE_CATALOGUE
    epochs = int(np.clip(TARGETS // targets, FEWEST_EPOCHS, MOST_EPOCHS))
    return Recipe(
        encoder={
            "name": "causal",
            "max_length": max_length,
            "dropout": 0.5 if small else 0.2,
            "filter_weight": 0.7,
            "filter_half_life": 1.0,
        },
        vectors={"dim": WIDE if large_catalogue else NARROW, "ensemble": ENSEMBLE if small else 1},
        loss={"name": "softmax", "label_smoothing": 0.1} if small else "softmax",
        negatives={"kind": "mixed", "n": N_NEGATIVES} if large_catalogue else "all",
        # a cosine schedule is best near its end: looking at every epoch on the way takes time and finds nothing
        split={"patience": epochs, "every": VALIDATE_EVERY},
        training={
            "batch": {"events": max(EVENTS_A_BATCH, max_length)},
            "epochs": epochs,
            "schedule": "cosine",
            "table": {"rate": 0.2},
        },
    )
