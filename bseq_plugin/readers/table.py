"""Tables that are no logs, of items, candidates, users or vectors: read by the rules of a log's columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from bseq_plugin.errors import SchemaError, UsageError
from bseq_plugin.events.log_options import LogOptions
from bseq_plugin.events.recognise import recognise
from bseq_plugin.events.relation import JSON, Relation, connect, named, told
from bseq_plugin.readers.files import log_files
from bseq_plugin.readers.open_log import of_files

IDS = ("user_id", "item_id", "request_id")


def read_table(path: Path) -> pd.DataFrame:
    """Read a table of any kind a log may have, a folder or pattern too.

    Numbers of a text file are numbers if all of a column are; ids are read as in a log, integers with a gap as Int64.

    Raises UsageError for what is not there or can't be read.
    """
    files = log_files(str(path))
    if files[0].kind == "txt":
        raise UsageError(f"{path} holds lines of sequences, not a table; give .parquet, .csv, .tsv or .jsonl")
    try:
        relation = of_files(files, str(path), LogOptions(), connect())
        if relation.twice:
            raise SchemaError(f"{path}: column {min(relation.twice)!r} is there twice; keep one")
        table = _typed(relation)
    except SchemaError as error:
        raise UsageError(str(error)) from None
    return _frame(table)


def _typed(relation: Relation) -> pa.Table:
    columns = relation.columns
    typed = recognise(relation, columns, relation.source, {name: name for name in IDS if name in columns})
    chosen = []
    for name, value in typed.items():
        sql = value.sql
        if value.from_text and value.type == "VARCHAR" and name not in IDS:
            sql = _number(relation, sql)
        elif columns[name].type == JSON and value.type == "HUGEINT":
            sql = f"CAST({sql} AS BIGINT)"
        chosen.append(f"{sql} AS {named(name)}")
    query = f"SELECT {', '.join(chosen)} FROM {relation.source}"
    found: Any = told(lambda: relation.connection.sql(query).to_arrow_table(), relation.name)
    return found


def _number(relation: Relation, sql: str) -> str:
    """Text as numbers with a fraction, if all of it is."""
    query = f"SELECT count({sql}) > 0 AND count({sql}) = count(try_cast({sql} AS DOUBLE)) FROM {relation.source}"
    return f"try_cast({sql} AS DOUBLE)" if relation.rows(query) == [(True,)] else sql


def _frame(table: pa.Table) -> pd.DataFrame:
    frame: pd.DataFrame = table.to_pandas()
    for name in IDS:
        if name in table.column_names and pa.types.is_integer(table.schema.field(name).type):
            column = table[name]
            if column.null_count:  # pandas would make floats of them
                frame[name] = column.to_pandas(types_mapper={column.type: pd.Int64Dtype()}.get)
    return frame
