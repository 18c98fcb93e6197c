"""Events: the validated log everything starts from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pandas as pd
import pyarrow as pa

from bseq_plugin.errors import SchemaError
from bseq_plugin.events.frames import of_frame
from bseq_plugin.events.log import Log, events_table
from bseq_plugin.events.log_options import (
    COLUMNS,
    CREATED,
    DAY_US,
    EARLIEST_US,
    EVENT_TYPE,
    ITEM,
    MICROSECONDS,
    SESSION,
    TIME,
    USER,
    VALUE,
    LogOptions,
)
from bseq_plugin.events.relation import Relation
from bseq_plugin.events.summary import LogSummary, events_per_user

__all__ = [
    "CREATED",
    "DAY_US",
    "EARLIEST_US",
    "EVENT_TYPE",
    "ITEM",
    "MICROSECONDS",
    "SESSION",
    "TIME",
    "USER",
    "VALUE",
    "Events",
    "canonical",
    "instant_us",
]


@dataclass(frozen=True)
class Events:
    """A validated log; build it with ``Events.from_frame`` or ``bseq_plugin.read_events``.

    Attributes:
        frame: columns ``user_id`` and ``item_id`` (int64 or str), ``timestamp`` (int64, microseconds since the epoch,
            UTC; absent in an order-only log), and those of ``event_type`` (str), ``session_id``, ``value`` (float64),
            ``created_timestamp`` (int64, microseconds: when the event became known) that the source has. Rows stand in
            input order; equal times keep it. Equal rows are separate events.
        rows_read: of the source, None if the events are not of one.
        left_out: rows, by the option that left them out.
        options: with which the source was read, None if the events are not of one.
    """

    frame: pd.DataFrame
    rows_read: int | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)
    options: LogOptions | None = None

    @cached_property
    def summary(self) -> LogSummary:
        """What was read of the source, and what was left out of it."""
        frame = self.frame
        lengths = frame[USER].value_counts(sort=False).to_numpy()
        types = frame[EVENT_TYPE].value_counts().to_dict() if EVENT_TYPE in frame else {}
        return LogSummary(
            len(frame) if self.rows_read is None else self.rows_read,
            dict(self.left_out),
            len(frame),
            len(lengths),
            frame[ITEM].nunique(),
            events_per_user(lengths),
            int(frame[TIME].min()) if self.has_times else None,
            int(frame[TIME].max()) if self.has_times else None,
            {str(name): int(count) for name, count in types.items()},
        )

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def has_times(self) -> bool:
        """Whether the log has times; if not, it tells only the order of events."""
        return TIME in self.frame

    @classmethod
    def from_frame(
        cls, frame: pd.DataFrame, columns: Mapping[str, str] | None = None, timestamp_unit: str | None = None
    ) -> Events:
        """Validate ``frame`` and bring it into canonical form; ``frame`` itself is not changed.

        Args:
            frame: any DataFrame with a user, an item and a time for each event.
            columns: our name -> the frame's name, for columns that are called something else.
            timestamp_unit: "s", "ms" or "us", required if the times are integers.

        Raises:
            SchemaError: naming the column, the row and the remedy.
        """
        options = LogOptions(dict(columns or {}), timestamp_unit)
        return cls.from_relation(of_frame(frame, {options.source(name) for name in COLUMNS}), options)

    @classmethod
    def from_relation(cls, relation: Relation, options: LogOptions) -> Events:
        """Read the events of a relation into memory, in the order of the log. Raises SchemaError."""
        log = Log(relation, options)
        frame = canonical(events_table(log))
        return cls(frame, log.rows_read, log.left_out, options)

    @classmethod
    def in_order(cls, user_ids: np.ndarray, item_ids: np.ndarray) -> Events:
        """Make events of a log without times: rows of one user stand oldest first."""
        relation = of_frame(pd.DataFrame({USER: user_ids, ITEM: item_ids}), None)
        return cls.from_relation(replace(relation, only_order=True), LogOptions())

    def before(self, at_us: int) -> Events:
        """Return the events strictly before ``at_us`` (microseconds, UTC)."""
        return Events(self.frame[self.frame[TIME] < at_us])

    def known_at(self, at_us: int) -> Events:
        """Return the events strictly before ``at_us`` (us, UTC) that had arrived (``created_timestamp``) by then."""
        before = self.before(at_us)
        return Events(before.frame[before.frame[CREATED] <= at_us]) if CREATED in before.frame else before

    def between(self, start_us: int, end_us: int) -> Events:
        """Return the events in [start_us, end_us)."""
        times = self.frame[TIME]
        return Events(self.frame[(times >= start_us) & (times < end_us)])


def instant_us(value: object, name: str = "at") -> int:
    """Return the microseconds since the epoch of a timezone-aware time (datetime, Timestamp or ISO text).

    Raises SchemaError for a naive or unreadable time: guessing a time zone shifts what counts as the past.
    """
    try:
        stamp = pd.Timestamp(value)  # type: ignore[arg-type]
    except (ValueError, TypeError) as error:
        raise SchemaError(f"{name} = {value!r} is not a time: {error}") from None
    if pd.isna(stamp):
        raise SchemaError(f"{name} is missing; give a time such as 2017-12-01T00:00:00+00:00")
    if stamp.tzinfo is None:
        raise SchemaError(f"{name} = {value!r} has no time zone; write for example {stamp.isoformat()}+00:00")
    return int(stamp.value // 1_000)  # value is in nanoseconds whatever the unit of the stamp


def canonical(table: pa.Table) -> pd.DataFrame:
    """Return events as Arrow has them as the frame that ``Events`` holds: text as str, nulls of ``value`` as NaN."""
    frame: pd.DataFrame = table.to_pandas()
    for name in frame.columns:
        if table.schema.field(name).type in (pa.string(), pa.large_string()):
            frame[name] = frame[name].astype("str")
        elif name == VALUE:
            frame[name] = frame[name].astype("float64")
    return frame
