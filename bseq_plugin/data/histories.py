"""Histories for a loader of your own: of a table's rows, each as of its own time."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from bseq_plugin.data.batches import history_features
from bseq_plugin.errors import SchemaError
from bseq_plugin.events.events import DAY_US, EARLIEST_US
from bseq_plugin.events.sequences import Sequences
from bseq_plugin.recipe.recipe import Recipe
from bseq_plugin.schema.grid import first_at_or_after


def history_features_at(sequences: Sequences, users: ArrayLike, at_us: ArrayLike, recipe: Recipe) -> KeyedJaggedTensor:
    """Return ``history_features`` of B rows: of ``users[row]`` the latest events strictly before ``at_us[row]``.

    An event that arrived (``created``) after ``at_us`` is not read either. Users may stand in several rows, in any
    order; an unknown one has no events. What is looked up is kept with ``sequences``: call it batch after batch.

    Args:
        users: [B], ids as in ``sequences.user_ids``.
        at_us: int64 [B], or one for all, in microseconds UTC.

    Raises:
        SchemaError: ids of another kind, times in another unit, or a log that is not in order or has no times.
        ValueError: the sequences lack what a feature needs.
    """
    return history_features(histories_before(sequences, users, at_us, recipe.encoder.max_length), recipe)


def histories_before(sequences: Sequences, users: ArrayLike, at_us: ArrayLike, max_length: int) -> Sequences:
    """Return one history a row; see ``history_features_at``."""
    if sequences.timestamps is None:
        raise SchemaError("this log has no times, so what came before `at_us` is unknown; give events with times")
    asked, known = pd.Index(np.asarray(users)), sequences.known_users
    kinds = {pd.api.types.is_integer_dtype(ids.dtype) for ids in (asked, known) if len(ids)}
    if len(kinds) > 1:
        raise SchemaError(
            f"users are {asked.dtype}, and the log has ids like {known[:1].tolist()}: they are never equal"
        )
    at_R, place_R = _instants(at_us, len(asked)), known.get_indexer(asked)
    found_R = np.flatnonzero(place_R >= 0)
    starts_R, ends_R = np.zeros((2, len(asked)), np.int64)
    starts_R[found_R] = sequences.offsets[place_R[found_R]]
    ends_R[found_R] = sequences.offsets[place_R[found_R] + 1]
    ends_R = first_at_or_after(sequences.timestamps, starts_R, ends_R, at_R)
    latest_R = np.maximum(starts_R, ends_R - max_length)
    if sequences.created is not None and sequences.n_events:  # what was late makes room for an older event
        late_R = sequences.latest_created[np.maximum(ends_R - 1, 0)] > at_R
        latest_R = np.where(late_R, starts_R, latest_R)
    rows = replace(sequences, user_ids=asked.to_numpy()).slices(np.arange(len(asked)), latest_R, ends_R)
    if rows.created is not None:
        rows = rows.where(rows.created <= np.repeat(at_R, rows.lengths))
    return rows.latest(max_length)


def _instants(at_us: ArrayLike, n_rows: int) -> np.ndarray:
    at = np.asarray(at_us)
    if at.dtype.kind != "i" or at.shape not in ((), (n_rows,)):
        raise SchemaError(f"at_us is {at.dtype} {at.shape}; give microseconds UTC as int64 [{n_rows}], or one for all")
    if at.size and not EARLIEST_US <= at.min() <= at.max() <= time.time() * 1e6 + DAY_US:
        raise SchemaError(f"at_us reaches from {at.min()} to {at.max()}, before 1990 or ahead of now: are they in us?")
    return np.broadcast_to(at.astype(np.int64), n_rows)
