"""``where``: an expression over the columns of a source."""

from __future__ import annotations

import json
from typing import Any

from bseq_plugin.errors import SchemaError, UsageError
from bseq_plugin.events.log_options import LogOptions
from bseq_plugin.events.recognise import recognise
from bseq_plugin.events.relation import JSON, TEXT, Column, Relation, named, quoted

DECIMAL = "count({0}) > 0 AND count({0}) = count(try_cast({0} AS DOUBLE))"


def where_columns(relation: Relation, options: LogOptions) -> dict[str, str]:
    """Return the columns that ``where`` reads: name -> SQL of the value, a number where all of a text column are.

    Raises:
        UsageError: it is no expression, or not one of true and false.
        SchemaError: it names a column that is not there.
    """
    if options.where is None:
        return {}
    [(text,)] = relation.rows(f"SELECT json_serialize_sql({quoted('SELECT (' + options.where + chr(10) + ')')})")
    parsed = json.loads(text)
    told = options.told("where", options.where)
    statements = [statement["node"] for statement in parsed.get("statements", [])]
    if len(statements) != 1 or len(statements[0].get("select_list", [])) != 1:
        raise UsageError(f"{told}: {parsed.get('error_message', 'write one expression')}; for example Quantity > 0")
    known = {name.lower(): name for name in relation.columns}
    chosen = {}
    for name in _names(statements[0]):
        if name.lower() not in known:
            raise SchemaError(f"{relation.name}: {told}: there is no column {name!r}; found {list(relation.columns)}")
        chosen[known[name.lower()]] = relation.columns[known[name.lower()]]
    values = {name: _value(relation, column) for name, column in chosen.items()}
    columns = ", ".join(f"{sql} AS {named(name)}" for name, sql in values.items())
    inner = f"(SELECT {columns or '1'} FROM {relation.source})"
    try:
        kinds = relation.types_of(f"SELECT ({options.where}\n) FROM {inner}")
    except SchemaError as error:
        raise UsageError(f"{told}: {error}") from None
    if list(kinds.values()) != ["BOOLEAN"]:
        raise UsageError(f"{told} is {', '.join(kinds.values())}, not true or false; for example Quantity > 0")
    return values


def _names(node: Any) -> list[str]:
    """Return the names of columns in a syntax tree, each once."""
    if isinstance(node, list):
        return list(dict.fromkeys(name for part in node for name in _names(part)))
    if not isinstance(node, dict):
        return []
    own = [node["column_names"][-1]] if node.get("class") == "COLUMN_REF" else []
    return list(dict.fromkeys([*own, *_names(list(node.values()))]))


def _value(relation: Relation, column: Column) -> str:
    """Return the SQL of a column's value, with a type to compare."""
    if column.type not in (TEXT, JSON):
        return column.sql
    typed = recognise(relation, {"value": column}, relation.source, {})["value"]
    if typed.type == "HUGEINT":
        return f"CAST({typed.sql} AS BIGINT)"
    if typed.type == "JSON":
        return f"try_cast({column.sql} AS BOOLEAN)" if _is_truth(relation, column) else typed.sql
    if typed.type != "VARCHAR" or column.type == JSON:
        return typed.sql
    [(numbers,)] = relation.rows(f"SELECT {DECIMAL.format(column.sql)} FROM {relation.source}")
    return f"try_cast({column.sql} AS DOUBLE)" if numbers else column.sql


def _is_truth(relation: Relation, column: Column) -> bool:
    [(truth,)] = relation.rows(f"SELECT bool_and(json_type({column.sql}) = 'BOOLEAN') FROM {relation.source}")
    return bool(truth)
