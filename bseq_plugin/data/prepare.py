"""From a log to what a run needs: vocabulary, sequences, training part, validation set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pandas as pd

from bseq_plugin.data.events import DAY_US, EVENT_TYPE, Events, instant_us
from bseq_plugin.data.sequences import Sequences
from bseq_plugin.data.splits import EvaluationSet, leave_one_out, time_window, training_part
from bseq_plugin.data.vocabulary import Vocabulary
from bseq_plugin.errors import SchemaError
from bseq_plugin.schema.recipe import Recipe


@dataclass(frozen=True)
class PreparedLog:
    """A log split by the recipe.

    Attributes:
        recipe: with ``event_features`` cut to those the log has, and the instants of a time split filled in.
        sequences: the whole log; only ``training`` and ``validation`` may be used to choose anything.
    """

    recipe: Recipe
    vocabulary: Vocabulary
    sequences: Sequences
    training: Sequences
    validation: EvaluationSet | None

    @property
    def trained_until_us(self) -> int | None:
        """Time of the newest training event."""
        times = self.training.timestamps
        return None if times is None or len(times) == 0 else int(times.max())


def prepare(events: Events, recipe: Recipe) -> PreparedLog:
    """Split ``events``; the vocabulary of a time split counts only what lies before the validation.

    Raises SchemaError if the split leaves nothing to train on or to validate with.
    """
    recipe = _resolve(events, recipe)
    if recipe.split == "time":
        cut_us = instant_us(recipe.validation_at, "validation_at")
        past = events.before(cut_us)
        if len(past) == 0:
            raise SchemaError(f"no event lies before validation_at = {recipe.validation_at}; choose a later instant")
        vocabulary = Vocabulary.from_events(past, recipe.min_item_count)
        sequences = Sequences.from_events(events, vocabulary)
        return PreparedLog(
            recipe, vocabulary, sequences, sequences.between(None, cut_us), evaluation_set(sequences, recipe, "validation")
        )
    if recipe.split == "leave-one-out":
        # the whole file's items are ranked, as in the papers; what is learned comes from the training part alone
        catalogue = Vocabulary.from_events(events, recipe.min_item_count)
        sequences = Sequences.from_events(events, catalogue)
        training = training_part(sequences)
        vocabulary = catalogue.recounted(training.items)
        return PreparedLog(recipe, vocabulary, sequences, training, evaluation_set(sequences, recipe, "validation"))
    vocabulary = Vocabulary.from_events(events, recipe.min_item_count)
    sequences = Sequences.from_events(events, vocabulary)
    return PreparedLog(recipe, vocabulary, sequences, sequences, None)


def evaluation_set(sequences: Sequences, recipe: Recipe, part: Literal["validation", "test"]) -> EvaluationSet:
    """The held-out part of a log, under a recipe that ``prepare`` has resolved.

    With ``mask_seen`` the targets are the items new to the user.
    """
    if recipe.split == "none":
        raise SchemaError("split = 'none' holds nothing out; train with split = 'time' or 'leave-one-out' to evaluate")
    if recipe.split == "time":
        at = recipe.validation_at if part == "validation" else recipe.test_at
        found = time_window(sequences, instant_us(at, f"{part}_at"), recipe.horizon_days)
    else:
        found = leave_one_out(sequences, part)
    return found.new_items_only() if recipe.mask_seen else found


def _resolve(events: Events, recipe: Recipe) -> Recipe:
    has = {"event_type": EVENT_TYPE in events.frame, "time_gap": events.has_times}
    values: dict[str, object] = {"event_features": tuple(f for f in recipe.event_features if has[f])}
    if recipe.split == "time":
        if not events.has_times:
            raise SchemaError("split = 'time' needs a log with times; use split = 'leave-one-out'")
        newest = int(events.frame["timestamp"].max()) + 1
        horizon = int(recipe.horizon_days * DAY_US)
        for key, default in (("test_at", newest - horizon), ("validation_at", newest - 2 * horizon)):
            values[key] = getattr(recipe, key) or pd.Timestamp(default, unit="us", tz="UTC").isoformat()
    return recipe.replace(**values)
