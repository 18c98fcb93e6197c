"""Histories in columnar form: flat arrays, no Python object an event.

On disk: Parquet with one row a user and list columns, so that Spark, DuckDB or Ray can write what we read:

    user_id | item_ids list | timestamps list<int64 us> | event_types list<str> | session_ids list<int64>
            | created_timestamps list<int64 us> | values list<double>

Ids on disk are the log's own; in memory they are rows of the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from bseq_plugin.errors import SchemaError
from bseq_plugin.events.events import CREATED, EVENT_TYPE, ITEM, SESSION, TIME, USER, VALUE, Events
from bseq_plugin.events.sequence_columns import ON_DISK
from bseq_plugin.events.vocabulary import Vocabulary

# the columns of events in memory, on disk, and by the names they have in a log
EVENT_COLUMNS = ("items", "timestamps", "event_types", "session_ids", "created", "values")


@dataclass(frozen=True)
class Sequences:
    """Histories of U users, T events in all, each user's oldest first.

    Attributes:
        user_ids: int64 or str objects [U].
        offsets: int64 [U + 1].
        items: int64 [T], vocabulary rows (0 = unknown).
        timestamps: int64 [T], microseconds UTC, or None.
        event_types: int64 [T], vocabulary rows, or None.
        session_ids: int64 [T], equal within a session of one user, or None.
        created: int64 [T], microseconds UTC at which an event became known, or None if that was at its own time.
        values: float64 [T], what an event was worth, NaN where that is not known; or None.
    """

    user_ids: np.ndarray
    offsets: np.ndarray
    items: np.ndarray
    timestamps: np.ndarray | None = None
    event_types: np.ndarray | None = None
    session_ids: np.ndarray | None = None
    created: np.ndarray | None = None
    values: np.ndarray | None = None

    @classmethod
    def from_events(cls, events: Events, vocabulary: Vocabulary) -> Sequences:
        """Sort by user and time, stably: equal times keep the order of the log. Users come in ascending order."""
        frame = events.frame
        codes, user_ids = pd.factorize(frame[USER], sort=True)
        order = np.lexsort((frame[TIME].to_numpy(), codes)) if events.has_times else np.argsort(codes, kind="stable")
        offsets = np.concatenate([[0], np.cumsum(np.bincount(codes, minlength=len(user_ids)))]).astype(np.int64)
        users = user_ids.to_numpy() if hasattr(user_ids, "to_numpy") else np.asarray(user_ids)
        return cls(
            users if np.issubdtype(users.dtype, np.integer) else users.astype(object),
            offsets,
            vocabulary.item_rows(frame[ITEM])[order],
            frame[TIME].to_numpy()[order] if events.has_times else None,
            vocabulary.event_type_rows(frame[EVENT_TYPE])[order] if EVENT_TYPE in frame else None,
            pd.factorize(frame[SESSION])[0][order].astype(np.int64) if SESSION in frame else None,
            frame[CREATED].to_numpy()[order] if CREATED in frame else None,
            frame[VALUE].to_numpy(np.float64)[order] if VALUE in frame else None,
        )

    @property
    def n_users(self) -> int:
        """The number of users, U."""
        return len(self.user_ids)

    @property
    def n_events(self) -> int:
        """The number of events, T."""
        return len(self.items)

    @property
    def lengths(self) -> np.ndarray:
        """The number of events of each user, int64 [U]."""
        return np.diff(self.offsets)

    @property
    def user_index(self) -> np.ndarray:
        """The place (0..U-1) of each event's user, int64 [T]."""
        return np.repeat(np.arange(self.n_users), self.lengths)

    @property
    def newest_us(self) -> int | None:
        """The time of the newest event; None without times or events."""
        return None if self.timestamps is None or not self.n_events else int(self.timestamps.max())

    @cached_property
    def latest_created(self) -> np.ndarray:
        """The latest ``created`` among an event and those before it of its user, int64 [T]; ``timestamps`` without."""
        if self.created is None:
            return np.asarray(self.timestamps)
        values, rank_T = np.unique(self.created, return_inverse=True)
        first_T = self.user_index * len(values)  # a later user's ranks lie above all of an earlier one's
        return np.asarray(values[np.maximum.accumulate(first_T + rank_T) - first_T])

    @cached_property
    def known_users(self) -> pd.Index:
        """The users, to find places with. Raises SchemaError if one stands twice, or has events out of time order."""
        users: pd.Index = pd.Index(self.user_ids)
        wrong = users.duplicated()
        if self.timestamps is not None:
            wrong[self.user_index[1:][(np.diff(self.timestamps) < 0) & (np.diff(self.user_index) == 0)]] = True
        if wrong.any():
            raise SchemaError(
                f"user {users[wrong].tolist()[0]!r} stands twice, or has events that are not oldest first: sort them"
            )
        return users

    def take(self, users: np.ndarray) -> Sequences:
        """Return the histories of ``users`` (places 0..U-1, in this order, repeats allowed)."""
        return self.slices(users, self.offsets[:-1][users], self.offsets[1:][users])

    def latest(self, max_length: int) -> Sequences:
        """Return only each user's latest ``max_length`` events; these very histories if none is longer."""
        if self.lengths.max(initial=0) <= max_length:
            return self
        starts, ends = self.offsets[:-1], self.offsets[1:]
        return self.slices(np.arange(self.n_users), np.maximum(starts, ends - max_length), ends)

    def without_last(self, n: int) -> Sequences:
        """Return every history without its last ``n`` events."""
        starts, ends = self.offsets[:-1], self.offsets[1:]
        return self.slices(np.arange(self.n_users), starts, np.maximum(starts, ends - n))

    def slices(self, users: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> Sequences:
        """Return one history for each (user, start, end): the events at places start..end-1 of the flat arrays."""
        offsets = np.concatenate([[0], np.cumsum(ends - starts)]).astype(np.int64)
        return replace(self.rows(places_of_runs(starts, ends)), user_ids=self.user_ids[users], offsets=offsets)

    def where(self, keep: np.ndarray) -> Sequences:
        """Return only the events with ``keep`` [T] True; users stay, with shorter histories."""
        kept = np.concatenate([[0], np.cumsum(keep)])
        return replace(self.rows(np.flatnonzero(keep)), offsets=kept[self.offsets].astype(np.int64))

    def between(self, start_us: int | None, end_us: int | None) -> Sequences:
        """Return only the events in [start_us, end_us), in microseconds, UTC; None = open."""
        if self.timestamps is None:
            raise SchemaError("this log has no times, so it can't be cut at an instant; use the leave-one-out split")
        keep = np.ones(self.n_events, bool)
        if start_us is not None:
            keep &= self.timestamps >= start_us
        if end_us is not None:
            keep &= self.timestamps < end_us
        return self.where(keep)

    def known_at(self, at_us: int) -> Sequences:
        """Return what was known at an instant: events strictly before it that had arrived (``created``) by then."""
        past = self.between(None, at_us)
        return past if past.created is None else past.where(past.created <= at_us)

    def known(self) -> Sequences:
        """Return only the events whose item is in the vocabulary."""
        return self.where(self.items > 0)

    def nobody(self) -> Sequences:
        """Return one user without events, with the same columns: for whom a rank without users asks."""
        return replace(self.rows(np.empty(0, np.int64)), user_ids=np.zeros(1, np.int64), offsets=np.zeros(2, np.int64))

    @staticmethod
    def join(parts: list[Sequences]) -> Sequences:
        """Join the users of all parts, one part after the other; all parts have the same columns."""
        chosen: dict[str, Any] = {}
        for name in EVENT_COLUMNS:
            columns = [getattr(part, name) for part in parts]
            chosen[name] = None if columns[0] is None else np.concatenate(columns)
        lengths = np.concatenate([part.lengths for part in parts])
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return Sequences(np.concatenate([part.user_ids for part in parts]), offsets, **chosen)

    def rows(self, rows: np.ndarray) -> Sequences:
        """Return the events at ``rows`` of the flat arrays; ``offsets`` stay, and the caller sets what fits."""
        chosen: dict[str, Any] = {}
        for name in EVENT_COLUMNS:
            column = getattr(self, name)
            chosen[name] = None if column is None else column[rows]
        return replace(self, **chosen)

    def save(self, path: Path, vocabulary: Vocabulary) -> None:
        """Write the Parquet form."""
        pq.write_table(self.to_table(vocabulary), path)

    def to_table(self, vocabulary: Vocabulary) -> pa.Table:
        """Return the Parquet form in memory; an event of an unknown item has lost its id and gets null."""
        ids = vocabulary.arrow_ids.take(pa.array(self.items - 1, mask=self.items == 0))
        columns = {USER: pa.array(self.user_ids), "item_ids": self._lists(ids)}
        for column, on_disk in zip(EVENT_COLUMNS[1:], ON_DISK[1:], strict=True):
            values = getattr(self, column)
            if column == "event_types" and values is not None:
                values = pa.array(np.array(["", *vocabulary.event_types], dtype=object)[values], pa.string())
            if values is not None:
                columns[on_disk] = self._lists(pa.array(values))
        return pa.table(columns)

    def _lists(self, values: pa.Array) -> pa.Array:
        return pa.LargeListArray.from_arrays(pa.array(self.offsets), values)

    @classmethod
    def load(cls, path: Path, vocabulary: Vocabulary) -> Sequences:
        """Read the Parquet form. Raises SchemaError for missing columns or lists of unequal length."""
        return cls.from_table(pq.read_table(path), vocabulary, path.name)

    @classmethod
    def from_table(cls, table: pa.Table, vocabulary: Vocabulary, name: str) -> Sequences:
        """Read the Parquet form in memory, called ``name`` in errors. Raises as ``load``."""
        for column in (USER, "item_ids"):
            if column not in table.column_names:
                raise SchemaError(f"{name} lacks column {column!r}; found {table.column_names}")
        flat = {n: _with_long_text(table[n]).combine_chunks() for n in table.column_names if n != USER}
        lengths = {n: c.value_lengths().to_numpy(zero_copy_only=False) for n, c in flat.items()}
        for column, values in lengths.items():
            if not np.array_equal(values, lengths["item_ids"]):
                raise SchemaError(f"{name}: lists of {column!r} and 'item_ids' differ in length")
        ids = flat["item_ids"].flatten()
        # null = unknown item; no real id is negative, and none holds a NUL character
        ids = ids.fill_null(-1 if pa.types.is_integer(ids.type) else "\0")
        values = {n: c.flatten().to_numpy(zero_copy_only=False) for n, c in flat.items()}
        users = table[USER].to_pandas().to_numpy()
        return cls(
            users if np.issubdtype(users.dtype, np.integer) else users.astype(object),
            np.concatenate([[0], np.cumsum(lengths["item_ids"])]).astype(np.int64),
            vocabulary.item_rows(ids.to_numpy(zero_copy_only=False)),
            values.get("timestamps"),
            vocabulary.event_type_rows(values["event_types"]) if "event_types" in values else None,
            values.get("session_ids"),
            values.get("created_timestamps"),
            values["values"].astype(np.float64) if "values" in values else None,
        )


def places_of_runs(starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return int64, the places start..end-1 of every run of rows, one run after the other."""
    lengths = ends - starts
    return np.asarray(np.arange(lengths.sum()) + np.repeat(starts - (np.cumsum(lengths) - lengths), lengths))


def _with_long_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return lists of text as ``large_string``: an array of ``string`` holds 2 GiB, and all chunks become one."""
    if pa.types.is_string(getattr(column.type, "value_type", pa.null())):
        return column.cast(pa.large_list(pa.large_string()))
    return column
