"""Any source of events as a relation."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from bseq_plugin.errors import SchemaError
from bseq_plugin.events.frames import of_arrow, of_frame, speaks_arrow
from bseq_plugin.events.log_options import COLUMNS, LogOptions
from bseq_plugin.events.recognise import recognise
from bseq_plugin.events.relation import IN_ORDER, TEXT, Column, Relation, connect, named, quoted
from bseq_plugin.events.rules import AWARE, FLOATS, INTEGERS, NAIVE
from bseq_plugin.events.sequence_columns import ON_DISK
from bseq_plugin.readers.files import LogFile, is_readable, log_files
from bseq_plugin.readers.text import glob_escaped, of_json_lines, of_sequence_text, of_tables

ROWS_A_FILE = 1 << 40
FIRST_ROWS = 10_000  # by which the types of text are guessed


def open_log(source: object, options: LogOptions, connection: Any = None, stage: bool = False) -> Relation | None:
    """Return what a source holds, or None if it is nothing that is read here.

    Args:
        source: a DataFrame, anything that gives an Arrow stream, or a path, folder or pattern.
        connection: to read with; by default one in memory.
        stage: read text and streams into a table of the connection first; it spills what does not fit its memory.

    Raises:
        UsageError: a file is not there.
        SchemaError: a file is damaged, or files of one source differ.
    """
    relation = _opened(source, options, connection or connect(), stage)
    if relation is None or not stage or relation.place != IN_ORDER:
        return relation
    return staged(relation, options)


def _opened(source: object, options: LogOptions, connection: Any, once: bool) -> Relation | None:
    if isinstance(source, pd.DataFrame):
        wanted = None if options.where else {options.source(name) for name in COLUMNS} | {*ON_DISK}
        return of_frame(source, wanted, connection)
    if speaks_arrow(source):
        return of_arrow(source, connection, once)
    if not isinstance(source, str | Path) or not is_readable(str(source)):
        return None
    return of_files(log_files(str(source)), str(source), options, connection)


def staged(relation: Relation, options: LogOptions) -> Relation:
    """Return what is read of a relation as a table, whose rows have numbers: looking again is cheap then.

    A stream, which can be read once only, is read here. Memory is that of the connection, which spills the rest.
    """
    wanted = {options.source(ours) for ours in COLUMNS} | {*ON_DISK}
    columns = {name: c for name, c in relation.columns.items() if options.where is not None or name in wanted}
    text = {name: column for name, column in columns.items() if column.type == TEXT}
    first = f"(SELECT * FROM {relation.source} LIMIT {FIRST_ROWS})" if text else ""
    # whole numbers are kept as such, half the size, if what the first rows say is true of all
    whole = {name for name, typed in recognise(relation, text, first, {}).items() if typed.type == "BIGINT"}
    return _staged(relation, columns, whole) or _staged(relation, columns, set()) or relation


def _staged(relation: Relation, columns: dict[str, Column], whole: set[str]) -> Relation | None:
    """A table of the columns, or None if ``whole`` ones are not all whole numbers."""
    safe = {name: f"c{place}" for place, name in enumerate(columns)}
    chosen, other = [f"{relation.file or 'NULL::VARCHAR'} AS bseq_file"], ["false"]
    for name, column in columns.items():
        number = f"try_cast({column.sql} AS BIGINT)"
        chosen.append(f"{number if name in whole else column.sql} AS {safe[name]}")
        if name in whole:
            other.append(
                f"coalesce({column.sql} IS NOT NULL AND CAST({number} AS VARCHAR) IS DISTINCT FROM {column.sql})"
            )
    chosen.append(f"{' OR '.join(other)} AS bseq_other")
    relation.rows(f"CREATE OR REPLACE TEMP TABLE bseq_staged AS SELECT {', '.join(chosen)} FROM {relation.source}")
    if whole and relation.rows("SELECT bool_or(bseq_other) FROM bseq_staged") == [(True,)]:
        return None
    there = {n: Column(safe[n], "BIGINT" if n in whole else column.type) for n, column in columns.items()}
    others = {name: Column("NULL", "VARCHAR") for name in relation.columns if name not in there}
    file = "bseq_file" if relation.file is not None else None
    return replace(relation, source="bseq_staged", columns={**there, **others}, place="rowid", file=file)


def of_files(files: list[LogFile], name: str, options: LogOptions, connection: Any) -> Relation:
    """Return files of one kind. Raises SchemaError."""
    wanted, kind = {options.source(ours) for ours in COLUMNS}, files[0].kind
    if kind == "parquet":
        relation = _of_parquet(connection, files, wanted | {*ON_DISK}, name)
    elif kind == "jsonl":
        relation = of_json_lines(connection, files, wanted, name)
    elif kind == "txt":
        return of_sequence_text(connection, files, name)
    else:
        relation = of_tables(connection, files, wanted, name)
    return _with_folder_names(relation, files, wanted)


def _of_parquet(connection: Any, files: list[LogFile], wanted: set[str], name: str) -> Relation:
    names = [_types(connection, file) for file in files]
    for other, kinds in zip(files[1:], names[1:], strict=True):
        for label in sorted(wanted):
            first, found = names[0].get(label), kinds.get(label)
            if (first is None) != (found is None):
                lacking, having = (other, files[0]) if found is None else (files[0], other)
                raise SchemaError(
                    f"{lacking.path} lacks column {label!r}, which {having.path} has; write it into all files or none"
                )
            if first is not None and found is not None and _family(first) != _family(found):
                raise SchemaError(
                    f"column {label!r} is {first} in {files[0].path} and {found} in {other.path}; make them one type"
                )
    paths = ", ".join(glob_escaped(file) for file in files)
    how = "hive_partitioning = false, union_by_name = true, filename = 'bseq_file'"
    place = f"file_index::BIGINT * {ROWS_A_FILE} + file_row_number"
    scan = f"read_parquet([{paths}], {how})"
    whole = Relation(connection, "", {}, name)
    types = whole.types_of(f"SELECT * FROM {scan}")
    # a name in another case stands under a name that DuckDB makes up
    columns = {label: Column(named(label), kind) for label, kind in types.items() if label != "bseq_file"}
    return Relation(connection, scan, columns, name, place=place, file="bseq_file")


def _types(connection: Any, file: LogFile) -> dict[str, str]:
    one = Relation(connection, "", {}, str(file.path))
    return one.types_of(f"SELECT * FROM read_parquet({glob_escaped(file)}, hive_partitioning = false)")


def _family(kind: str) -> str:
    """What one column of several files may be without a loss."""
    element, lists = kind.removesuffix("[]"), "[]" if kind.endswith("[]") else ""
    for family in (INTEGERS, NAIVE, AWARE, FLOATS):
        if element in family:
            return sorted(family)[0] + lists
    return ("INTEGER" if element.startswith("DECIMAL") and element.endswith(",0)") else element) + lists


def _with_folder_names(relation: Relation, files: list[LogFile], wanted: set[str]) -> Relation:
    """Add columns that only the names of folders tell, as Spark's ``partitionBy`` writes them: ``event_type=buy/``.

    A column that stands in the files is read from there, whatever the folders are called.
    """
    added = {}
    for label in sorted(wanted - set(relation.columns)):
        if all(any(part.startswith(f"{label}=") for part in file.path.parts[:-1]) for file in files):
            pattern = f"/{re.escape(label)}=([^/]*)/"
            value = f"url_decode(regexp_extract('/' || {relation.file}, {quoted(pattern)}, 1))"
            added[label] = Column(f"nullif(nullif({value}, '__HIVE_DEFAULT_PARTITION__'), '')", TEXT)
    return replace(relation, columns={**relation.columns, **added})
