"""Events: the validated log everything starts from."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from bseq_plugin.errors import SchemaError

USER, ITEM, TIME = "user_id", "item_id", "timestamp"
EVENT_TYPE, SESSION, VALUE, CREATED = "event_type", "session_id", "value", "created_timestamp"
REQUIRED = (USER, ITEM, TIME)
OPTIONAL = (EVENT_TYPE, SESSION, VALUE, CREATED)

MICROSECONDS = {"s": 1_000_000, "ms": 1_000, "us": 1}
# Outside these years an integer time is in another unit than the one named: seconds read as milliseconds land in
# 1970, milliseconds read as seconds in the year 50,000.
EARLIEST_US = int(pd.Timestamp("1990-01-01", tz="UTC").value // 1_000)
DAY_US = 86_400 * MICROSECONDS["s"]


@dataclass(frozen=True)
class Events:
    """A validated log; build it with ``Events.from_frame`` or ``bseq_plugin.read_events``.

    Attributes:
        frame: columns ``user_id`` and ``item_id`` (int64 or str), ``timestamp`` (int64, microseconds since the epoch,
            UTC; absent in an order-only log), and those of ``event_type`` (str), ``session_id``, ``value`` (float64),
            ``created_timestamp`` (int64, microseconds: when the event became known) that the source has. Rows stand in
            input order; equal times keep it. Equal rows are separate events.
    """

    frame: pd.DataFrame

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
        columns = dict(columns or {})
        unknown = sorted(set(columns) - set(REQUIRED + OPTIONAL))
        if unknown:
            raise SchemaError(f"columns= has unknown names {unknown}; use {list(REQUIRED + OPTIONAL)}")
        for name in REQUIRED:
            _require(frame, columns.get(name, name), name)
        if frame.empty:
            raise SchemaError("the log is empty: there is nothing to learn from or to look up")
        canonical = {
            USER: _ids(frame, columns.get(USER, USER)),
            ITEM: _ids(frame, columns.get(ITEM, ITEM)),
            TIME: _times(frame, columns.get(TIME, TIME), timestamp_unit),
        }
        for name in OPTIONAL:
            source = columns.get(name, name)
            if name in columns or source in frame:
                _require(frame, source, name)
                canonical[name] = _optional(frame, source, name, timestamp_unit)
        return cls(pd.DataFrame(canonical))

    @classmethod
    def in_order(cls, user_ids: np.ndarray, item_ids: np.ndarray) -> Events:
        """Make events of a log without times: rows of one user stand oldest first."""
        frame = pd.DataFrame({USER: user_ids, ITEM: item_ids})
        if frame.empty:
            raise SchemaError("the log is empty: there is nothing to learn from or to look up")
        return cls(pd.DataFrame({USER: _ids(frame, USER), ITEM: _ids(frame, ITEM)}))

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


def _require(frame: pd.DataFrame, source: str, name: str) -> None:
    if source not in frame:
        raise SchemaError(
            f"events lack column {source!r}; found {[str(c) for c in frame.columns]}. "
            f"Rename it or pass columns={{{name!r}: 'your column'}}"
        )
    if frame.columns.tolist().count(source) > 1:
        raise SchemaError(f"column {source!r} is there twice; keep one")


def _first(mask: pd.Series | np.ndarray) -> int:
    return int(np.flatnonzero(np.asarray(mask))[0])


def _no_nulls(column: pd.Series, source: str) -> None:
    nulls = column.isna()
    if nulls.any():
        raise SchemaError(
            f"column {source!r} has {int(nulls.sum())} nulls, the first in row {_first(nulls)} (counted from 0); "
            "drop or fill these rows"
        )


def _ids(frame: pd.DataFrame, source: str) -> pd.Series:
    """Return int64 or str; strings are compared byte for byte, so that two Unicode forms of one word are two ids."""
    column = frame[source].reset_index(drop=True)
    _no_nulls(column, source)
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(column.cat.categories.dtype)
    if pd.api.types.is_bool_dtype(column) or pd.api.types.is_float_dtype(column):
        raise SchemaError(f"column {source!r} has dtype {column.dtype}; ids are integers or strings: convert it first")
    kinds = pd.api.types.infer_dtype(column, skipna=False)
    if kinds == "integer":  # also Python's own, which may be of any size
        values = column.to_numpy()
        bad = (values < 0) | (values > np.iinfo(np.int64).max)
        if bad.any():
            row = _first(bad)
            raise SchemaError(
                f"column {source!r} has id {values[row]} in row {row}; ids are 0..2^63-1: re-number it or use strings"
            )
        return column.astype("int64")
    if kinds != "string":
        raise SchemaError(f"column {source!r} holds {kinds} values; ids are all integers or all strings: convert it")
    try:
        return column.astype("str")
    except UnicodeEncodeError as error:
        raise SchemaError(f"column {source!r} has an id that is not valid Unicode: {error}; repair it first") from None


def _times(frame: pd.DataFrame, source: str, unit: str | None) -> pd.Series:
    column = frame[source].reset_index(drop=True)
    _no_nulls(column, source)
    if pd.api.types.is_integer_dtype(column):
        micros = _integer_times(column, source, unit)
    elif isinstance(column.dtype, pd.DatetimeTZDtype):
        micros = column.dt.tz_convert("UTC").dt.as_unit("us").astype("int64")
    else:
        raise SchemaError(_time_remedy(column, source))
    bad = micros < EARLIEST_US
    if bad.any():
        row = _first(bad)
        raise SchemaError(
            f"column {source!r}: row {row} ({column.iloc[row]}) is before 1990; are the times in another unit than "
            f"timestamp_unit={unit!r}?"
        )
    bad = micros > int(time.time() * 1e6) + DAY_US
    if bad.any():
        row = _first(bad)
        raise SchemaError(
            f"column {source!r}: row {row} ({column.iloc[row]}) lies in the future; are the times in another unit than "
            f"timestamp_unit={unit!r}, or is a clock wrong? Drop these rows"
        )
    return micros.astype("int64")


def _integer_times(column: pd.Series, source: str, unit: str | None) -> pd.Series:
    if unit is None:
        raise SchemaError(f"column {source!r} holds integers; say their unit: timestamp_unit='s', 'ms' or 'us'")
    if unit not in MICROSECONDS:
        raise SchemaError(f"timestamp_unit = {unit!r}; use 's', 'ms' or 'us'")
    limit = np.iinfo(np.int64).max // MICROSECONDS[unit]
    # clipping keeps the multiplication in range; a clipped value is far in the future and refused by the caller
    return column.clip(-limit, limit).astype("int64") * MICROSECONDS[unit]


def _time_remedy(column: pd.Series, source: str) -> str:
    if pd.api.types.is_datetime64_dtype(column):
        return (
            f"column {source!r} has times without a time zone; say which it is: "
            f"df[{source!r}] = df[{source!r}].dt.tz_localize('UTC')"
        )
    if column.dtype == object and all(hasattr(v, "tzinfo") for v in column):
        zones = {str(v.tzinfo) for v in column}
        kind = "naive and aware times" if "None" in zones and len(zones) > 1 else f"time zones {sorted(zones)}"
        return f"column {source!r} mixes {kind}; bring all to one: pd.to_datetime(df[{source!r}], utc=True)"
    return (
        f"column {source!r} has dtype {column.dtype}; times are timezone-aware datetimes "
        f"(pd.to_datetime(df[{source!r}], utc=True)) or integers with timestamp_unit"
    )


def _optional(frame: pd.DataFrame, source: str, name: str, unit: str | None) -> pd.Series:
    if name == CREATED:
        return _times(frame, source, unit)
    column = frame[source].reset_index(drop=True)
    if name == VALUE:
        if not pd.api.types.is_numeric_dtype(column):
            raise SchemaError(f"column {source!r} (value) has dtype {column.dtype}; give numbers")
        return column.astype("float64")
    _no_nulls(column, source)
    return column.astype("str") if name == EVENT_TYPE else _ids(frame, source)
