"""What a log must be, as SQL: the one place where it is said which values are ids, times and numbers."""

from __future__ import annotations

import time
from dataclasses import dataclass

from bseq_plugin.errors import SchemaError
from bseq_plugin.events.log_options import (
    CREATED,
    DAY_US,
    EARLIEST_US,
    EVENT_TYPE,
    ITEM,
    MICROSECONDS,
    REQUIRED,
    SESSION,
    TIME,
    USER,
    VALUE,
    LogOptions,
)
from bseq_plugin.events.recognise import Typed
from bseq_plugin.events.relation import Relation

INTEGERS = {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "HUGEINT",
            "UHUGEINT"}  # fmt: skip
NAIVE = {"TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS", "DATE"}
AWARE = {"TIMESTAMP WITH TIME ZONE", "TIMESTAMPTZ", "TIMESTAMPTZ_NS"}
FLOATS = {"FLOAT", "DOUBLE"}
ORDER = (USER, ITEM, TIME, EVENT_TYPE, SESSION, VALUE, CREATED)
OFFSET = r"\s*(Z|z|UTC|[+-][0-9]{2}(:?[0-9]{2})?)"
ZONE = rf":[0-9]{{2}}([.,][0-9]+)?{OFFSET}\s*$"
ISO = rf"\s*[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}([T ][0-9]{{2}}:[0-9]{{2}}(:[0-9]{{2}}([.,][0-9]{{1,9}})?)?({OFFSET})?)?\s*"
SHIFTS = ("1 HOUR", "-1 HOUR", "30 MINUTES", "-30 MINUTES", "2 HOURS", "-2 HOURS")  # by which clocks are set back


@dataclass(frozen=True)
class Check:
    """Rows for which ``bad`` is true break a rule.

    ``told`` is the error: {column}, {n} rows, the first of them {row} with the value {value}.
    """

    column: str
    bad: str
    shown: str
    told: str


def require_columns(relation: Relation, options: LogOptions) -> list[str]:
    """Return our names of the columns that are there, in one order. Raises SchemaError for one that should be."""
    required = [name for name in REQUIRED if name != TIME or not relation.only_order]
    for name in ORDER:
        source = options.source(name)
        if source in relation.twice:
            raise SchemaError(f"{relation.name}: column {source!r} is there twice; keep one")
        if source not in relation.columns and (name in required or name in options.columns):
            raise SchemaError(
                f"{relation.name}: events lack column {source!r}; found {list(relation.columns)}. "
                f"Rename it or pass {options.of_columns(name)}"
            )
    return [name for name in ORDER if options.source(name) in relation.columns]


class Rules:
    """The values of our columns as SQL over ``typed`` columns, and what is checked of them."""

    def __init__(self, options: LogOptions, relation: Relation) -> None:
        self.options, self.relation, self.unit = options, relation, options.timestamp_unit
        self.values: dict[str, str] = {}
        self.checks: list[Check] = []
        self.zone_used = False

    def add(self, ours: str, typed: Typed) -> None:
        """Take a column in. Raises SchemaError for a type no value of which can be right."""
        column = self.options.source(ours)
        if ours != VALUE:
            remedy = f"drop or fill these rows, or {self.options.told('on_null', 'drop')}"
            told = f"column {{column}} has {{n}} nulls, the first in {{row}}; {remedy}"
            self.checks.append(Check(column, f"{typed.sql} IS NULL", "NULL", told))
        make = {TIME: self._times, CREATED: self._times, VALUE: self._numbers, EVENT_TYPE: self._labels}
        self.values[ours] = make.get(ours, self._ids)(column, typed)

    def _check(self, column: str, bad: str, shown: str, told: str) -> None:
        self.checks.append(Check(column, bad, f"CAST({shown} AS VARCHAR)", told))

    def _ids(self, column: str, typed: Typed) -> str:
        kind = "VARCHAR" if typed.type.startswith("ENUM") or typed.type == "UUID" else typed.type
        value = typed.sql if kind == typed.type else f"CAST({typed.sql} AS VARCHAR)"
        if kind == "VARCHAR":
            nul = "column {column} has an id with a NUL character in {row}; repair it first"
            self.checks.append(Check(column, f"contains({value}, chr(0))", "NULL", nul))
            if not self.relation.quotes:
                told = "column {column} has an id in quotes in {row}: {value}; a TSV has none: drop them"
                self._check(column, f"starts_with({value}, '\"') AND ends_with({value}, '\"')", value, told)
            return value
        whole = kind in INTEGERS or (kind.startswith("DECIMAL") and kind.endswith(",0)"))
        if not whole:
            raise SchemaError(
                f"{self.relation.name}: column {column!r} holds {typed.told or _word(kind)} values; ids are all "
                "integers or all strings: convert it"
            )
        told = "column {column} has id {value} in {row}; ids are 0..2^63-1: re-number it or use strings"
        self._check(column, f"{value} < 0 OR {value} > 9223372036854775807", value, told)
        return f"CAST({value} AS BIGINT)"

    def _labels(self, column: str, typed: Typed) -> str:
        if typed.type.endswith("]") or typed.type.startswith(("STRUCT", "MAP", "BLOB", "UNION")):
            raise SchemaError(
                f"{self.relation.name}: column {column!r} (event_type) holds {typed.type} values; give text"
            )
        return f"CAST({typed.sql} AS VARCHAR)"

    def _numbers(self, column: str, typed: Typed) -> str:
        value = f"CAST({typed.sql} AS DOUBLE)"
        if typed.from_text and typed.type == "VARCHAR":
            value = f"try_cast({typed.sql} AS DOUBLE)"
            told = "column {column} (value): {row} ({value}) is no number; give numbers, or leave it empty"
            self._check(column, f"{typed.sql} IS NOT NULL AND {value} IS NULL", typed.sql, told)
        elif typed.type not in INTEGERS | FLOATS and not typed.type.startswith("DECIMAL"):
            raise SchemaError(
                f"{self.relation.name}: column {column!r} (value) has type {typed.told or typed.type}; give numbers"
            )
        told = "column {column} (value): {row} ({value}) is infinite; give a number, or leave it empty"
        self._check(column, f"isinf({value})", typed.sql, told)
        return f"nullif({value}, 'nan'::DOUBLE)"

    def _times(self, column: str, typed: Typed) -> str:
        kind, value = typed.type, typed.sql
        if self.relation.float_seconds and (kind in FLOATS or (typed.from_text and kind == "VARCHAR")):
            micros = self._float_times(column, value)
        elif kind in INTEGERS:
            micros = f"CAST({value} AS HUGEINT) * {self._factor(column)}"
        elif kind in AWARE:
            micros = f"epoch_us(CAST({value} AS TIMESTAMP WITH TIME ZONE))"
        elif kind in NAIVE:
            micros = self._local(column, f"CAST({value} AS TIMESTAMP)", value, f"{value} IS NOT NULL")
        elif kind == "VARCHAR":
            micros = self._text_times(column, value)
        else:
            raise SchemaError(
                f"{self.relation.name}: column {column!r} has type {typed.told or kind}; times have a time "
                f"zone, or are text in ISO 8601, or integers with {self.options.told('timestamp_unit', 's')}"
            )
        unit = "are the times in another unit" + (f" than {self.unit!r}?" if self.unit else "?")
        early = f"column {{column}}: {{row}} ({{value}}) is before 1990; {unit}"
        self._check(column, f"{micros} < {EARLIEST_US}", value, early)
        late = f"column {{column}}: {{row}} ({{value}}) lies in the future; {unit[:-1]}, or is a clock wrong? "
        latest = int(time.time() * 1e6) + DAY_US
        self._check(column, f"{micros} > {latest}", value, late + "Drop these rows")
        return f"CAST({micros} AS BIGINT)"

    def _factor(self, column: str) -> int:
        if self.unit is None:
            ways = "--timestamp-unit s, ms or us" if self.options.command else "timestamp_unit='s', 'ms' or 'us'"
            raise SchemaError(f"{self.relation.name}: column {column!r} holds integers; say their unit: {ways}")
        return MICROSECONDS[self.unit]

    def _float_times(self, column: str, value: str) -> str:
        number = f"try_cast({value} AS DOUBLE)"
        told = "column {column}: {row} ({value}) is no number; times of this file are numbers"
        self._check(column, f"{value} IS NOT NULL AND ({number} IS NULL OR NOT isfinite({number}))", value, told)
        return f"CAST(round(if(isfinite({number}), {number}, NULL) * {self._factor(column)}) AS HUGEINT)"

    def _text_times(self, column: str, value: str) -> str:
        written = self.options.time_format
        if written is not None:
            stamp = f"try_strptime({value}, '{written.replace(chr(39), chr(39) * 2)}')"
            self._check(
                column, f"{value} IS NOT NULL AND {stamp} IS NULL", value,
                f"column {{column}}: {{row}} ({{value}}) is not written as {self.options.told('time_format', written)}",
            )  # fmt: skip
            if "%z" in written or "%Z" in written:
                return f"epoch_us({stamp})"
            return self._local(column, stamp, value, f"{stamp} IS NOT NULL")
        other = f"replace(replace(replace({value}, ',', '.'), ' +', '+'), ' -', '-')"
        aware = f"coalesce(try_cast({value} AS TIMESTAMPTZ), try_cast({other} AS TIMESTAMPTZ))"
        zoned, iso = f"regexp_matches({value}, '{ZONE}')", f"regexp_full_match({value}, '{ISO}')"
        told = "column {column}: {row} ({value}) is not an ISO 8601 time; rewrite it, or say how it is written: "
        format_ = self.options.told("time_format", "%d/%m/%Y %H:%M")
        self._check(column, f"{value} IS NOT NULL AND (NOT {iso} OR {aware} IS NULL)", value, told + format_)
        naive = f"if({zoned}, NULL, try_cast(replace({value}, ',', '.') AS TIMESTAMP))"
        local = self._local(column, naive, value, f"{iso} AND NOT {zoned}")
        return f"if({zoned}, epoch_us({aware}), {local})" if self.options.time_zone else f"epoch_us({aware})"

    def _local(self, column: str, stamp: str, value: str, where: str) -> str:
        """Times without a zone: in the one that is given, or an error."""
        zone = self.options.time_zone
        if zone is None:
            remedy = f"write an offset, for example +00:00, or say which it is: {self.options.told('time_zone', 'UTC')}"
            self._check(column, where, value, f"column {{column}}: {{row}} ({{value}}) has no time zone; {remedy}")
            return "NULL"
        self.zone_used = True
        at = f"timezone('{zone}', {stamp})"
        told = f"column {{column}}: {{row}} ({{value}}) %s in {zone}; write an offset, or leave it out with "
        told += self.options.told("where", "...")
        self._check(column, f"timezone('{zone}', {at}) <> {stamp}", value, told % "does not exist: clocks went forward")
        twice = " OR ".join(f"timezone('{zone}', {at} + INTERVAL '{shift}') = {stamp}" for shift in SHIFTS)
        self._check(column, twice, value, told % "is there twice: clocks were set back")
        return f"epoch_us({at})"


def _word(kind: str) -> str:
    """DuckDB's type as a person calls it."""
    if kind.endswith("]") or kind.startswith(("STRUCT", "MAP")):
        return "list" if kind.endswith("]") else "nested"
    words = {"BOOLEAN": "boolean", "BLOB": "binary", **dict.fromkeys(FLOATS, "float")}
    return words.get(kind, "datetime" if kind in NAIVE | AWARE else kind.lower())
