"""How a log is to be read: which columns, which time, and what is left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args
from zoneinfo import ZoneInfo

from bseq_plugin.errors import SchemaError, UsageError

USER, ITEM, TIME = "user_id", "item_id", "timestamp"
EVENT_TYPE, SESSION, VALUE, CREATED = "event_type", "session_id", "value", "created_timestamp"
REQUIRED = (USER, ITEM, TIME)
OPTIONAL = (EVENT_TYPE, SESSION, VALUE, CREATED)
COLUMNS = REQUIRED + OPTIONAL

MICROSECONDS = {"s": 1_000_000, "ms": 1_000, "us": 1}
EARLIEST_US = 631_152_000_000_000  # 1990-01-01; integers in a smaller unit than the one named land before it
DAY_US = 86_400 * MICROSECONDS["s"]
OnNull = Literal["error", "drop"]
OnDuplicate = Literal["keep", "drop"]


@dataclass(frozen=True)
class LogOptions:
    """What every door to a log takes; ``docs/formats.md``, "Options", says what each does.

    Attributes:
        columns: our column name -> the source's, for columns that are called something else.
        timestamp_unit: "s", "ms" or "us", of integer times.
        time_zone: of times without one, such as Europe/London.
        time_format: of times in text that is not ISO 8601, as for ``strptime``.
        where: an expression of DuckDB's SQL over the source's columns; rows for which it is not true are left out.
        on_null: "drop" leaves out rows in which a column that is read, other than ``value``, is null.
        on_duplicate: "drop" leaves out all but the first of rows that are equal in all columns that are read.
        limit_users: as many users, drawn by a hash of their ids, with all their events.
        command: errors speak of options of the command line, not of arguments.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    timestamp_unit: str | None = None
    time_zone: str | None = None
    time_format: str | None = None
    where: str | None = None
    on_null: OnNull = "error"
    on_duplicate: OnDuplicate = "keep"
    limit_users: int | None = None
    command: bool = False

    def __post_init__(self) -> None:
        """Raise SchemaError or UsageError for a value that is none."""
        unknown = sorted(set(self.columns) - set(COLUMNS))
        if unknown:
            raise SchemaError(f"{self.of_columns()} has unknown names {unknown}; use {list(COLUMNS)}")
        if self.timestamp_unit is not None and self.timestamp_unit not in MICROSECONDS:
            raise SchemaError(f"{self.told('timestamp_unit', self.timestamp_unit)}: use s, ms or us")
        for name, kinds in (("on_null", OnNull), ("on_duplicate", OnDuplicate)):
            if getattr(self, name) not in get_args(kinds):
                raise UsageError(f"{self.told(name, getattr(self, name))}: use {' or '.join(get_args(kinds))}")
        if self.limit_users is not None and self.limit_users < 1:
            raise UsageError(f"{self.told('limit_users', self.limit_users)}: give 1 or more")
        if self.time_zone is not None:
            try:
                ZoneInfo(self.time_zone)
            except (KeyError, ValueError, OSError):
                raise UsageError(
                    f"{self.told('time_zone', self.time_zone)}: no such zone; write for example Europe/London or UTC"
                ) from None

    @property
    def cleans(self) -> bool:
        """Whether rows may be left out."""
        return bool(self.where or self.limit_users) or (self.on_null, self.on_duplicate) != ("error", "keep")

    def source(self, ours: str) -> str:
        """Return what our column is called in the source."""
        return self.columns.get(ours, ours)

    def told(self, option: str, value: object) -> str:
        """Return an option with its value, as its door writes it."""
        return f"--{option.replace('_', '-')} {value}" if self.command else f"{option}={value!r}"

    def of_columns(self, ours: str | None = None) -> str:
        """Return how a column is mapped."""
        if ours is None:
            return "--column" if self.command else "columns="
        return f"--column {ours}=YOURS" if self.command else f"columns={{{ours!r}: 'your column'}}"
