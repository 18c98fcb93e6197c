"""From partitioned sequences to what a run needs, a row group at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from bseq_plugin.data.partitions import PartitionedSequences
from bseq_plugin.data.prepare import LogColumns, PreparedLog, resolve, training_histories, validation_set, what_is_known
from bseq_plugin.data.streams import nobody
from bseq_plugin.errors import SchemaError
from bseq_plugin.events.sequences import Sequences
from bseq_plugin.events.vocabulary import Vocabulary
from bseq_plugin.recipe.recipe import Recipe

SAMPLED_USERS = 10_000  # that validation and `bseq evaluate` see: a log of this size has more than they need


def resolved(log: PartitionedSequences, recipe: Recipe) -> Recipe:
    """Return the recipe with what the log lacks left out and the instants of a time split filled in."""
    has = LogColumns(*(name in log.columns for name in ("event_types", "session_ids", "values")))
    return resolve(recipe, has, log.last_us)


def count_partitions(log: PartitionedSequences, recipe: Recipe, numbers: list[int]) -> tuple[np.ndarray, int]:
    """Return (events of each item of the log in the training part, int64 [V]; time of its newest event, 0 for none)."""
    vocabulary = log.vocabulary
    counts, newest = np.zeros(vocabulary.n_items + 1, np.int64), 0
    for histories in _all(log, vocabulary, numbers):
        part = training_histories(histories, recipe.split)
        rows, n_events = np.unique(part.items, return_counts=True)
        counts[rows] += n_events
        if part.timestamps is not None and len(part.timestamps):
            newest = max(newest, int(part.timestamps.max()))
    return counts[1:], newest


def prepare_partitions(
    log: PartitionedSequences,
    recipe: Recipe,
    counts: np.ndarray,
    newest_us: int,
    items: pd.DataFrame | None = None,
    progress: bool = False,
) -> PreparedLog:
    """Prepare a log in partitions, as ``prepare`` does, under a resolved recipe, with the counts of
    ``count_partitions``.

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
    return PreparedLog(
        recipe,
        vocabulary,
        sample,
        nobody(log),
        validation_set(sample, recipe.split),
        attributes,
        log,
        newest_us or None,
        item_vectors,
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


def _all(log: PartitionedSequences, vocabulary: Vocabulary, numbers: list[int]) -> Iterator[Sequences]:
    for number in numbers:
        for group in range(len(log.row_group_users(number))):
            yield log.read(number, [group], vocabulary)
