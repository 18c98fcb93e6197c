"""What a column of text, or of JSON values, holds: numbers where that loses nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bseq_plugin.errors import SchemaError
from bseq_plugin.events.relation import JSON, TEXT, Column, Relation

NUMBER = r"-?(0|[1-9][0-9]*)(\.[0-9]*)?"  # 007.5 is no number that a program wrote


@dataclass(frozen=True)
class Typed:
    """A column whose type is known. ``told``: the type in an error's words, if DuckDB's name says too little."""

    sql: str
    type: str
    from_text: bool = False
    told: str = ""


def recognise(relation: Relation, columns: dict[str, Column], source: str, ids: Mapping[str, str]) -> dict[str, Typed]:
    """Return the columns with the types that their values have.

    Text is integers if every value is one, written as integers are written: ``7`` and ``-7``, not ``007``, ``+7`` or
    one beyond 64 bits. JSON values are what they are.

    Args:
        columns: by name.
        source: what stands behind FROM.
        ids: columns that may not be numbers with a fraction -> what they are called in an error.

    Raises SchemaError for JSON values of several types in one column, and ids with a fraction.
    """
    typed = {name: Typed(column.sql, column.type) for name, column in columns.items()}
    unknown = {name: column for name, column in columns.items() if column.type in (TEXT, JSON)}
    if not unknown:
        return typed
    counts = ", ".join(_counts(column) for column in unknown.values())
    [found] = relation.rows(f"SELECT {counts} FROM {source}")
    for place, (name, column) in enumerate(unknown.items()):
        n, whole, text, number = found[4 * place : 4 * place + 4]
        if column.type == JSON:
            typed[name] = _of_json(column, n, whole, text, number)
        elif n and whole == n:
            typed[name] = Typed(f"CAST({column.sql} AS BIGINT)", "BIGINT", True)
        else:
            typed[name] = Typed(column.sql, "VARCHAR", True)
            if name in ids and n:
                _no_fractions(relation, ids[name], column, source)
    return typed


def _counts(column: Column) -> str:
    """Values that are there, whole numbers, text, and numbers of any kind."""
    value = column.sql
    if column.type == TEXT:
        whole = f"CAST(try_cast({value} AS BIGINT) AS VARCHAR) = {value}"
        return f"count({value}), count_if({whole}), 0, 0"
    kind = f"json_type({value})"
    there = f"{value} IS NOT NULL AND {kind} <> 'NULL'"
    numbers = f"{kind} IN ('UBIGINT', 'BIGINT', 'DOUBLE')"
    whole = f"{kind} IN ('UBIGINT', 'BIGINT')"
    return f"count_if({there}), count_if({whole}), count_if({kind} = 'VARCHAR'), count_if({numbers})"


def _of_json(column: Column, n: int, whole: int, text: int, number: int) -> Typed:
    value = f"({column.sql} ->> '$')"
    if n == 0:
        return Typed("CAST(NULL AS VARCHAR)", "VARCHAR")
    if whole == n:
        return Typed(f"try_cast({value} AS HUGEINT)", "HUGEINT")
    if text == n:
        return Typed(value, "VARCHAR")
    if number == n:
        return Typed(f"CAST({value} AS DOUBLE)", "DOUBLE")
    if number or text:
        return Typed(value, "JSON", told="mixed (text and numbers, or lists, objects and truth values)")
    return Typed(value, "JSON", told="nested, or true and false")


def _no_fractions(relation: Relation, name: str, column: Column, source: str) -> None:
    """Numbers some of which have a fraction were integers before somebody's table had a gap: 7 and 7.0 are one id."""
    value = column.sql
    query = (
        f"SELECT bool_and(regexp_full_match({value}, '{NUMBER}')), any_value({value}) FILTER (contains({value}, '.')) "
        f"FROM {source} WHERE {value} IS NOT NULL"
    )
    [(numbers, example)] = relation.rows(query)
    if numbers and example is not None:
        raise SchemaError(
            f"{relation.name}: column {name!r} has ids written as floats, such as {example!r}; ids are integers or "
            "strings: write them without a fraction"
        )
