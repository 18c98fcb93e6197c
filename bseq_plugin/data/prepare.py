"""From a log, in memory or in partitions, to what a run needs: vocabulary, sequences, training part, validation set."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from bseq_plugin.data.event_features import SESSION, TIME_GAP, TIME_OF_WEEK, EventInputs
from bseq_plugin.data.items import ItemAttributes, ItemVectors, PopularityPrior
from bseq_plugin.data.partitions import PartitionedSequences
from bseq_plugin.data.splits import EvaluationSet, training_histories, training_part, validation_set
from bseq_plugin.errors import SchemaError
from bseq_plugin.events.events import DAY_US, EVENT_TYPE, VALUE, Events, instant_us
from bseq_plugin.events.events import SESSION as SESSION_ID
from bseq_plugin.events.sequence_columns import LISTS
from bseq_plugin.events.sequences import Sequences
from bseq_plugin.events.vocabulary import Vocabulary
from bseq_plugin.recipe.data import SESSION_GAP_MINUTES, UTC, EventSettings, ItemSettings, SplitSettings, TimeSplit
from bseq_plugin.recipe.recipe import Recipe

SAMPLED_USERS = 10_000  # that validation and `bseq evaluate` see: a log of this size has more than they need


@dataclass(frozen=True)
class PreparedLog:
    """A log split by the recipe.

    Attributes:
        recipe: with ``events.features`` cut to those the log has, and the instants of a time split filled in.
        sequences: the whole log; only ``training`` and ``validation`` may be used to choose anything.
        partitions: where the log is, if it is read a piece at a time; ``sequences`` is then a sample of users, and
            ``training`` is empty.
        trained_until_us: time of the newest training event.
        summary: what was read of the log, and what was left out; None of parts of another engine.
    """

    recipe: Recipe
    vocabulary: Vocabulary
    sequences: Sequences
    training: Sequences
    validation: EvaluationSet | None
    attributes: ItemAttributes | None
    partitions: PartitionedSequences | None = None
    trained_until_us: int | None = None
    item_vectors: ItemVectors | None = None
    summary: dict[str, Any] | None = None

    @cached_property
    def item_priors(self) -> np.ndarray | None:
        """Popularity at the end of the training part, float32 [V + 1, P], or None if the recipe has no spans."""
        if not self.recipe.popularity_days:
            return None
        end_us = (self.trained_until_us or 0) + 1
        return PopularityPrior(self.training, self.vocabulary.n_items, self.recipe.popularity_days).at(end_us)


def prepare(events: Events, recipe: Recipe, items: pd.DataFrame | None = None, progress: bool = False) -> PreparedLog:
    """Split ``events``; the vocabulary of a time split counts only what lies before the validation.

    Args:
        items: a row an item with ``item_id`` and the columns that ``items.attributes`` names and
            ``items.encoders`` read.
        progress: show how far slow item encoders are.

    Raises:
        SchemaError: the split leaves nothing to train on or to validate with; the items table is missing or unfit.
    """
    newest_us = int(events.frame["timestamp"].max()) if events.has_times else None
    recipe = resolve(recipe, events.frame.columns, newest_us)
    vocabulary, sequences, training = _split(events, recipe.split, recipe.items.min_count)
    validation = validation_set(sequences, recipe.split)
    attributes, item_vectors = what_is_known(items, recipe.items, vocabulary, progress)
    until_us = training.newest_us
    read = events.summary.to_dict()
    return PreparedLog(
        recipe, vocabulary, sequences, training, validation, attributes, None, until_us, item_vectors, read
    )


def what_is_known(
    items: pd.DataFrame | None, settings: ItemSettings, vocabulary: Vocabulary, progress: bool = False
) -> tuple[ItemAttributes | None, ItemVectors | None]:
    """What the recipe reads of the items table. Raises SchemaError if it reads something and there is none."""
    if not settings.attributes and not settings.encoders:
        return None, None
    if items is None:
        read = f"item attributes {settings.attributes}" if settings.attributes else "items with items.encoders"
        raise SchemaError(f"the recipe reads {read}; give the items table (--items)")
    attributes = vectors = None
    if settings.attributes:
        attributes = ItemAttributes.from_frame(items, settings.attributes, vocabulary)
    if settings.encoders:
        vectors = ItemVectors.from_frame(items, settings.encoders, vocabulary, progress)
    return attributes, vectors


def _split(events: Events, split: SplitSettings, min_count: int) -> tuple[Vocabulary, Sequences, Sequences]:
    """(vocabulary, whole log, training part)."""
    if split.kind == "time":
        cut_us = instant_us(split.validation_at, "validation_at")
        past = events.before(cut_us)
        if len(past) == 0:
            raise SchemaError(
                f"no event lies before split.validation_at = {split.validation_at}; choose a later instant"
            )
        vocabulary = Vocabulary.from_events(past, min_count)
        sequences = Sequences.from_events(events, vocabulary)
        return vocabulary, sequences, sequences.between(None, cut_us)
    vocabulary = Vocabulary.from_events(events, min_count)
    sequences = Sequences.from_events(events, vocabulary)
    if split.kind == "none":
        return vocabulary, sequences, sequences
    # the whole file's items are ranked, as in the papers; what is learned comes from the training part alone
    training = training_part(sequences)
    return vocabulary.recounted(training.items), sequences, training


def resolve(recipe: Recipe, columns: Container[str], newest_us: int | None) -> Recipe:
    """Return the recipe with what a log lacks left out and the instants of a time split filled in.

    Args:
        columns: of the log; the optional ones count.
        newest_us: time of the newest event, None for a log without times.
    """
    timed = newest_us is not None
    has = {
        EVENT_TYPE: EVENT_TYPE in columns,
        TIME_GAP: timed,
        TIME_OF_WEEK: timed,
        SESSION: timed or SESSION_ID in columns,
        VALUE: VALUE in columns,
    }
    inputs = EventInputs.of(recipe.events, recipe.encoder)
    if inputs.sessions and not has[SESSION]:
        raise SchemaError(
            f"encoder {recipe.encoder.name!r} reads sessions, and the log has neither session ids nor times; give one "
            "of them, or another encoder"
        )
    features = [name for name in recipe.events.features if has[name]]
    resolved = recipe.replace(events={**recipe.events.model_dump(), **_read(recipe.events, features, inputs.sessions)})
    return resolved.replace(split=_resolved_split(recipe.split, newest_us)) if recipe.split.kind == "time" else resolved


def _read(events: EventSettings, features: Sequence[str], sessions: bool) -> dict[str, object]:
    """The features a log has; a time zone and a length of sessions only where something left reads them."""
    gap = events.session_gap_minutes if sessions or SESSION in features else SESSION_GAP_MINUTES
    zone = events.time_zone if TIME_OF_WEEK in features else UTC
    return {"features": features, "time_zone": zone, "session_gap_minutes": gap}


def _resolved_split(split: TimeSplit, newest_us: int | None) -> TimeSplit:
    """A time split with its instants filled in. Raises SchemaError if they can't be."""
    if newest_us is None:
        raise SchemaError("split.kind = 'time' needs a log with times; use split.kind = 'leave_one_out'")
    newest, horizon = newest_us + 1, int(split.horizon_days * DAY_US)
    at = {
        key: given or pd.Timestamp(default, unit="us", tz="UTC").isoformat()
        for key, given, default in (
            ("test_at", split.test_at, newest - horizon),
            ("validation_at", split.validation_at, newest - 2 * horizon),
        )
    }
    if instant_us(at["test_at"], "test_at") < instant_us(at["validation_at"], "validation_at") + horizon:
        raise SchemaError(
            f"split.test_at = {at['test_at']} lies before the end of the validation ({at['validation_at']} and "
            f"{split.horizon_days:g} days): the test would help to choose the model; move them apart, or lower "
            "split.horizon_days"
        )
    return split.model_copy(update=at)


def resolved(log: PartitionedSequences, recipe: Recipe) -> Recipe:
    """Return the recipe as ``resolve`` does, for a log in partitions."""
    return resolve(recipe, [name for name, lists in LISTS.items() if lists in log.columns], log.last_us)


def count_partitions(log: PartitionedSequences, recipe: Recipe, numbers: list[int]) -> tuple[np.ndarray, int]:
    """Return (events of each item of the log in the training part, int64 [V]; time of its newest event, 0 for none)."""
    vocabulary = log.vocabulary
    counts, newest = np.zeros(vocabulary.n_items + 1, np.int64), 0
    groups = ((number, group) for number in numbers for group in range(len(log.row_group_users(number))))
    for number, group in groups:
        part = training_histories(log.read(number, [group], vocabulary), recipe.split)
        rows, n_events = np.unique(part.items, return_counts=True)
        counts[rows] += n_events
        newest = max(newest, part.newest_us or 0)
    return counts[1:], newest


def prepare_partitions(
    log: PartitionedSequences,
    recipe: Recipe,
    counts: np.ndarray,
    newest_us: int,
    items: pd.DataFrame | None = None,
    progress: bool = False,
) -> PreparedLog:
    """Prepare a log in partitions as ``prepare`` does, under a resolved recipe, with what ``count_partitions`` says.

    ``sequences`` are those of a sample of users, ``training`` is empty: it is read as it is trained on.
    """
    whole = log.vocabulary
    # as in memory: a time split knows the items of the past only, the other splits those of the whole log
    deciding = counts if recipe.split.kind == "time" else whole.item_counts
    keep = deciding >= recipe.items.min_count
    if not keep.any():
        raise SchemaError(f"no item has items.min_count = {recipe.items.min_count} events or more; lower it")
    vocabulary = Vocabulary(whole.item_ids[keep], counts[keep], whole.event_types)
    sample = _sample(log, vocabulary)
    attributes, item_vectors = what_is_known(items, recipe.items, vocabulary, progress)
    nobody, validation, until_us = log.nobody(), validation_set(sample, recipe.split), newest_us or None
    return PreparedLog(
        recipe, vocabulary, sample, nobody, validation, attributes, log, until_us, item_vectors, log.summary
    )


def _sample(log: PartitionedSequences, vocabulary: Vocabulary) -> Sequences:
    """Return the first users of every partition: partitions are made by a hash, so that they are like any others."""
    share, parts = max(1, SAMPLED_USERS // len(log.partitions)), []
    for number, partition in enumerate(log.partitions):
        if partition.users:
            first = log.read(number, [0], vocabulary)
            parts.append(first.take(np.arange(min(share, first.n_users))))
    if not parts:
        raise SchemaError(f"{log.folder} has no users")
    return Sequences.join(parts)
