"""What lies in memory, a DataFrame or anything that speaks Arrow, as a relation."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pyarrow as pa

from bseq_plugin.errors import SchemaError
from bseq_plugin.events.relation import Column, Relation, connect, told

NAME = "the log"


def speaks_arrow(source: object) -> bool:
    """Whether a source gives a stream of Arrow: its tables, polars' frames, DuckDB's relations and many more."""
    return hasattr(source, "__arrow_c_stream__")


def of_frame(frame: pd.DataFrame, wanted: set[Any] | None, connection: Any = None) -> Relation:
    """Return a frame's columns, ``wanted`` ones only. Raises SchemaError for values of several types in a column."""
    names = [name for name in frame.columns if wanted is None or name in wanted]
    twice = frozenset(str(name) for name in names if names.count(name) > 1)
    columns = {str(name): _array(frame[name], str(name)) for name in dict.fromkeys(names) if str(name) not in twice}
    table = pa.table(columns) if columns else pa.table({"bseq_none": pa.nulls(len(frame))})
    relation = of_arrow(table, connection)
    there = {name: relation.columns[name] for name in columns}
    others = {str(name): Column("NULL", "VARCHAR") for name in frame.columns if str(name) not in there}
    return Relation(relation.connection, relation.source, {**there, **others}, NAME, twice=twice)


def of_arrow(source: Any, connection: Any = None, once: bool = False) -> Relation:
    """Return what an Arrow stream gives: read into memory, or left as a stream that will be looked at ``once``."""
    connection = connect() if connection is None else connection
    try:
        stream = source if isinstance(source, pa.Table) else pa.RecordBatchReader.from_stream(source)
        names = list(stream.schema.names)
        safe = [f"c{place}" for place in range(len(names))]  # DuckDB does not tell A from a
        kinds = pa.schema([field.with_name(name) for field, name in zip(stream.schema, safe, strict=True)])
        if isinstance(stream, pa.Table):
            stream = stream.rename_columns(safe)
        elif once:
            batches = (pa.RecordBatch.from_arrays(batch.columns, schema=kinds) for batch in stream)
            stream = pa.RecordBatchReader.from_batches(kinds, batches)
        else:
            stream = stream.read_all().rename_columns(safe)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise SchemaError(f"{NAME} can't be read as Arrow: {str(error).splitlines()[0]}") from None
    connection.register("bseq_kinds", kinds.empty_table())
    connection.register("bseq_log", stream)
    found = told(lambda: connection.execute("DESCRIBE SELECT * FROM bseq_kinds").fetchall(), NAME)
    columns = {name: Column(column, kind[1]) for name, column, kind in zip(names, safe, found, strict=True)}
    return Relation(connection, "bseq_log", columns, NAME, twice=frozenset(n for n in names if names.count(n) > 1))


def _array(column: pd.Series, name: str) -> pa.ChunkedArray | pa.Array:
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(column.cat.categories.dtype)
    if column.dtype == object:
        _one_kind(column, name)
    try:
        return pa.array(column, from_pandas=True)
    except (pa.ArrowException, OverflowError, UnicodeError, ValueError, TypeError) as error:
        if column.dtype == object and pd.api.types.infer_dtype(column, skipna=True) == "integer":
            return _large(column, name)
        raise SchemaError(f"column {name!r} can't be read: {str(error).splitlines()[0]}; repair it first") from None


def _large(column: pd.Series, name: str) -> pa.Array:
    """Python's integers, which may be of any size."""
    bad = next((row, value) for row, value in enumerate(column) if not pd.isna(value) and not -(2**63) <= value < 2**63)
    raise SchemaError(
        f"column {name!r} has id {bad[1]} in row {bad[0]} (counted from 0); ids are 0..2^63-1: re-number it or use "
        "strings"
    )


def _one_kind(column: pd.Series, name: str) -> None:
    """Refuse what Arrow would take for one kind, or tell of in words of its own."""
    kind = pd.api.types.infer_dtype(column, skipna=True)
    if kind.startswith("mixed") and not column.dropna().map(lambda value: isinstance(value, list | tuple)).all():
        held = sorted({type(value).__name__ for value in column.dropna()})
        raise SchemaError(
            f"column {name!r} holds {kind} values ({', '.join(held)}); ids are all integers or all strings: convert it"
        )
    if kind == "datetime":
        zones = {str(value.tzinfo) for value in column.dropna()}
        if len(zones) > 1:
            mix = "naive and aware times" if "None" in zones else f"time zones {sorted(zones)}"
            raise SchemaError(f"column {name!r} mixes {mix}; bring all to one: pd.to_datetime(df[{name!r}], utc=True)")
