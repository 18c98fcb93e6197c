"""The recipe ``auto``: settings that follow from a log's size, lengths and span, and from what is held out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bseq_plugin.data.events import DAY_US, ITEM, TIME, USER, Events, instant_us
from bseq_plugin.data.partitions import PartitionedSequences
from bseq_plugin.errors import UsageError
from bseq_plugin.schema.recipe import Recipe
from bseq_plugin.schema.recipe_files import assign

AUTO = "auto"
AUTO_DESCRIPTION = (
    "Chosen from the log: its numbers of users, items and events and the lengths of its histories. With split = 'time' "
    "for all that is wanted within horizon_days, where the log spans four of these."
)
WHOLE_CATALOGUE = 4_096  # items up to which every one of them is a candidate: sampling would save little
N_CANDIDATES = 1_024
WIDE = 128  # width for more items than that: they have more to be told apart by
EVENTS_A_BATCH = 768
TARGETS = 5_000_000  # that a schedule goes through, again and again; a short log is not gone through more often than
MOST_EPOCHS, FEWEST_EPOCHS = 40, 8
VALIDATE_EVERY = 3
SMALL = 500_000  # events below which a model overfits first, whatever the lengths
MEMBERS = 3  # encoders whose scores are averaged on a small log: it costs minutes, and what they overfit to differs
HORIZONS = 2  # that a log must span before its validation: one to learn a window from, and a past before that
STRAY = 0.05  # share of the oldest events that do not count for the span: a few may have wrong dates
POPULARITY_HORIZONS = (0.25, 1.0, 13.0)  # with horizons of four weeks: of a week, of four, of a year
HALF_LIFE_HORIZONS = 4.0
EVERY_CANDIDATE = 100_000  # items up to which a window's softmax goes over all: there is one state a user, not an event
WINDOW_CANDIDATES = 16_384
WINDOW_EPOCHS, FEWEST_WINDOW_EPOCHS, USERS_OF_AN_EPOCH = 16, 4, 100_000
USERS_OF_A_SMALL_EPOCH = 16_000  # a pass over few users is a handful of batches: then there are more of them


def auto_recipe(events: Events, asked: Mapping[str, Any] | None = None, *, horizon_days: float | None = None) -> Recipe:
    """Return the recipe for ``events`` and what is asked of them.

    Only counts of users, items and events decide, and for windows the log's span; never what comes last. With a time
    split all of them are those of the log before the validation.

    Args:
        asked: settings by hand, which stand in the recipe. ``split``, ``horizon_days`` and ``validation_at`` say what
            is held out; with ``wants_window`` it is ``window_recipe``, else ``next_recipe``.
        horizon_days: predict all that is wanted within so many days: a time split of that horizon.

    Raises RecipeError for settings that are unknown or contradict the recipe.
    """
    held_out = {} if horizon_days is None else {"split": "time", "horizon_days": horizon_days}
    asked = held_out | dict(asked or {})
    return Recipe.parse(_over(_suited(events, asked).model_dump(), asked), AUTO)


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
    asked: dict[str, Any] = {}
    for setting in settings:
        assign(asked, setting)
    checked = Recipe(targets="window" if wants_window(asked) else "next").with_settings(settings)
    return checked if events is None else auto_recipe(events, asked).with_settings(settings)


def _over(values: dict[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``values`` with what is asked instead, key by key also below options."""
    lower = {key: values[key] for key, value in asked.items() if isinstance(value, Mapping) and key in values}
    return values | {key: _over(lower[key], value) if key in lower else value for key, value in asked.items()}


def _suited(events: Events, asked: Mapping[str, Any]) -> Recipe:
    days = float(asked.get("horizon_days", Recipe().horizon_days))
    known = _before_validation(events, asked, days) if asked.get("split") == "time" else events
    if wants_window(asked) and known.has_times and ("targets" in asked or _spans(known, days)):
        return window_recipe(known, float(asked.get("window_days", days)))
    return next_recipe(known)


def wants_window(asked: Mapping[str, Any]) -> bool:
    """Return whether what is asked goes with ``window_recipe``: those targets, or a time split and nothing else."""
    if "targets" in asked:
        return bool(asked["targets"] == "window")
    return asked.get("split") == "time" and asked.get("encoder", "mean") == "mean" and asked.get("members", 1) == 1


def _before_validation(events: Events, asked: Mapping[str, Any], days: float) -> Events:
    if not events.has_times:
        return events
    at_us = int(events.frame[TIME].max()) + 1 - int(2 * days * DAY_US)
    if asked.get("validation_at"):
        at_us = instant_us(asked["validation_at"], "validation_at")
    known = events.before(at_us)
    return known if len(known) else events  # whoever splits it says what is wrong


def _spans(events: Events, days: float) -> bool:
    times = events.frame[TIME].to_numpy()
    return bool(times.max() - np.quantile(times, STRAY) >= HORIZONS * days * DAY_US)


def window_recipe(events: Events, horizon_days: float) -> Recipe:
    """For all that a user wants within ``horizon_days`` of an instant.

    - ``targets``: windows of that length, the instants a quarter of it apart.
    - ``popularity_days``: a quarter of it, as long, and 13 times as long. What is in fashion changes faster than a
      model is trained again; ``bseq evaluate`` reads these columns off the log at the cut, ``bseq publish --log`` at
      its end.
    - ``encoder``: ``mean`` with a half life; over weeks the order of the last few events says little.
    - ``score``: cosine with a high temperature, so that taste begins as a small correction of popularity; higher, so a
      smaller correction, for a small log, which tells less of it.
    - ``candidates``: the whole catalogue up to 100,000 items, else a mixed sample.
    - ``epochs``: fewer where there are very many users; ``passes_per_epoch``: more where there are few.
    """
    n_users, n_items = int(events.frame[USER].nunique()), int(events.frame[ITEM].nunique())
    small = len(events) < SMALL
    epochs = int(np.clip(WINDOW_EPOCHS * USERS_OF_AN_EPOCH // n_users, FEWEST_WINDOW_EPOCHS, WINDOW_EPOCHS))
    values: dict[str, Any] = {
        "encoder": "mean",
        "encoder_options": {
            "half_life_days": HALF_LIFE_HORIZONS * horizon_days,
            "feed_forward": 128,
            "event_dropout": 0.1,
        },
        "max_length": 256,
        "dropout": 0.1,
        "event_features": (),
        "popularity_days": tuple(horizon_days * share for share in POPULARITY_HORIZONS),
        "score": "cosine",
        "temperature": 1.0 if small else 0.5,
        "targets": "window",
        "window_days": horizon_days,
        "window_step_days": horizon_days / 4,
        "passes_per_epoch": int(np.clip(USERS_OF_A_SMALL_EPOCH // n_users, 2, 16)) if small else 2,
        "batch_users": 256,
        "epochs": epochs,
        "patience": epochs,
        "schedule": "cosine",
        "table_init": 0.05,
    }
    if n_items > EVERY_CANDIDATE:
        values |= {"candidates": WINDOW_CANDIDATES, "sampling": "mixed"}
    return Recipe(**values)


def next_recipe(events: Events) -> Recipe:
    """For the next event.

    - ``dim``: 128 for a large catalogue, else 64; each of the ``members``.
    - ``max_length``: the length that 95 of 100 histories stay within, between 50 and 200.
    - ``candidates``: the whole catalogue if it is small, else a mixed sample.
    - ``dropout``: 0.5 for a small log, 0.2 for a large one; a small one also has its labels smoothed and
      three ``members``.
    - ``epochs``: of a cosine schedule, so many that all logs learn from a like number of targets.
    - batches hold a like number of events, whatever the lengths.

    The encoder is ``causal`` with most of its first half given to the frequency filter: what is wanted next depends
    on the last few events first. docs/results.md has what it reaches.
    """
    lengths = events.frame[USER].value_counts().to_numpy()
    n_items = int(events.frame[ITEM].nunique())
    max_length = int(np.clip(np.ceil(np.percentile(lengths, 95)), 50, 200))
    targets = int(np.minimum(lengths, max_length).sum())
    values: dict[str, Any] = {
        "encoder": "causal",
        "encoder_options": {"filter_weight": 0.7, "filter_half_life": 1.0},
        "max_length": max_length,
        "dropout": 0.5 if len(events) < SMALL else 0.2,
        "batch_events": max(EVENTS_A_BATCH, max_length),
        "epochs": int(np.clip(TARGETS // targets, FEWEST_EPOCHS, MOST_EPOCHS)),
        "schedule": "cosine",
        "table_learning_rate": 0.2,
    }
    if len(events) < SMALL:
        values |= {"loss_options": {"label_smoothing": 0.1}, "members": MEMBERS}
    # a cosine schedule is best near its end: looking at every epoch on the way takes time and finds nothing
    values |= {"patience": values["epochs"], "validate_every": VALIDATE_EVERY}
    if n_items > WHOLE_CATALOGUE:
        values |= {"dim": WIDE, "candidates": N_CANDIDATES, "sampling": "mixed"}
    return Recipe(**values)
