"""What a log must be, as SQL: the rules of ``Events.from_frame`` for logs that do not fit memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bseq_plugin.errors import SchemaError
from bseq_plugin.events.events import (
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
)

Rows = Callable[[str], list[tuple[Any, ...]]]
INTEGERS = {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "HUGEINT"}


@dataclass(frozen=True)
class Check:
    """Rows for which ``bad`` is true break the rule ``told``; ``shown`` is what is shown of one of them."""

    bad: str
    shown: str
    told: str
    remedy: str


def column_checks(
    types: dict[str, str], source_name: Callable[[str], str], unit: str | None, sql: Rows, scan: str
) -> tuple[dict[str, str], list[Check]]:
    """(our column -> SQL of its values, the rules).

    Args:
        types: column of the source -> DuckDB's type.
        source_name: our column's name in the source.
        unit: of integer times.
        sql: runs a query.
        scan: the source in a FROM clause.

    Raises SchemaError for a missing column or one of a type that no value of can be right.
    """
    for name in (USER, ITEM, TIME):
        if source_name(name) not in types:
            raise SchemaError(
                f"events lack column {source_name(name)!r}; found {[t for t in types if t != 'bseq_place']}. "
                f"Rename it or pass --column {name}=YOURS"
            )
    kinds, checks = {}, []
    for name in (USER, ITEM, SESSION, TIME, CREATED, EVENT_TYPE, VALUE):
        column = source_name(name)
        if column not in types:
            continue
        if name in (TIME, CREATED):
            kinds[name], more = _times(column, types[column], unit, sql, scan)
        elif name == EVENT_TYPE:
            kinds[name], more = f"CAST({_name(column)} AS VARCHAR)", [_no_nulls(column)]
        elif name == VALUE:
            kinds[name], more = _numbers(column, types[column], "read_csv" in scan)
        else:
            kinds[name], more = _ids(column, types[column], sql, scan)
        checks += more
    return kinds, checks


def _numbers(column: str, kind: str, from_text: bool) -> tuple[str, list[Check]]:
    """A null is a value that is not known. Parquet has to hold numbers; a CSV is all text."""
    name = _name(column)
    if kind == "VARCHAR" and from_text:
        bad = f"{name} IS NOT NULL AND try_cast({name} AS DOUBLE) IS NULL"
        told = f"column {column!r} (value) has text that is no number"
        return f"try_cast({name} AS DOUBLE)", [Check(bad, name, told, "give numbers, or leave it empty")]
    if kind not in INTEGERS | {"FLOAT", "DOUBLE"} and not kind.startswith("DECIMAL"):
        raise SchemaError(f"column {column!r} (value) has type {kind}; give numbers")
    return f"CAST({name} AS DOUBLE)", []


def _ids(column: str, kind: str, sql: Rows, scan: str) -> tuple[str, list[Check]]:
    name = _name(column)
    if kind == "VARCHAR":
        return _text_ids(column, sql, scan)
    if kind not in INTEGERS:
        raise SchemaError(f"column {column!r} has type {kind}; ids are integers or strings: convert it first")
    beyond = Check(
        f"{name} < 0 OR {name} > 9223372036854775807", f"{name}::VARCHAR",
        f"column {column!r} has ids outside 0..2^63-1", "re-number them or use strings",
    )  # fmt: skip
    return f"CAST({name} AS BIGINT)", [_no_nulls(column), beyond]


def _text_ids(column: str, sql: Rows, scan: str) -> tuple[str, list[Check]]:
    """Text that is all whole numbers written as numbers are becomes numbers in a CSV; in Parquet text stays text."""
    name = _name(column)
    if "read_csv" in scan:
        [(numbers,)] = sql(
            f"SELECT coalesce(bool_and(regexp_full_match({name}, '(0|[1-9][0-9]{{0,17}})')), false) FROM {scan}"
        )
        if numbers:
            return f"CAST({name} AS BIGINT)", [_no_nulls(column)]
    return name, [_no_nulls(column)]


def _times(column: str, kind: str, unit: str | None, sql: Rows, scan: str) -> tuple[str, list[Check]]:
    name = _name(column)
    checks = [_no_nulls(column)]
    if kind == "VARCHAR":
        [(integers,)] = sql(
            f"SELECT coalesce(bool_and(regexp_full_match({name}, '-?[0-9]{{1,18}}')), false) FROM {scan}"
        )
        kind = "BIGINT" if integers else kind
        name = f"CAST({name} AS BIGINT)" if integers else name
    if kind in INTEGERS:
        if unit not in MICROSECONDS:
            raise SchemaError(
                f"column {column!r} holds integers; say their unit: --timestamp-unit s, ms or us (given: {unit!r})"
            )
        micros = f"CAST({name} AS HUGEINT) * {MICROSECONDS[unit]}"
    elif kind == "TIMESTAMP WITH TIME ZONE":
        micros = f"epoch_us({name})"
    elif kind == "VARCHAR":
        zoned = f"regexp_matches({name}, '(Z|[+-][0-9]{{2}}:?[0-9]{{2}})\\s*$')"
        checks.append(
            Check(
                f"{name} IS NOT NULL AND (NOT {zoned} OR try_cast({name} AS TIMESTAMPTZ) IS NULL)", name,
                f"column {column!r} has times that are not ISO 8601 with an offset", "write for example +00:00 behind",
            )
        )  # fmt: skip
        micros = f"epoch_us(try_cast({name} AS TIMESTAMPTZ))"
    else:
        raise SchemaError(
            f"column {column!r} has type {kind}; times are timezone-aware (TIMESTAMP WITH TIME ZONE) or integers with "
            "--timestamp-unit"
        )
    shown = f"{name}::VARCHAR"
    latest = int(time.time() * 1e6) + DAY_US
    unit_told = f"are the times in another unit than {unit!r}?"
    checks.append(Check(f"{micros} < {EARLIEST_US}", shown, f"column {column!r} has times before 1990", unit_told))
    checks.append(Check(f"{micros} > {latest}", shown, f"column {column!r} has times in the future", unit_told))
    return f"CAST({micros} AS BIGINT)", checks


def _no_nulls(column: str) -> Check:
    row = "bseq_place::VARCHAR || ' (counted in the log)'"
    return Check(f"{_name(column)} IS NULL", row, f"column {column!r} has nulls", "drop or fill these rows")


def _name(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'
