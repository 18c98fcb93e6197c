"""Text files as relations: CSV and TSV with one dialect each, RecBole's .inter, JSON lines, and lines of sequences.

DuckDB guesses nothing: it is told the columns, the separator and the quotes, and every field is text.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from bseq_plugin.errors import SchemaError
from bseq_plugin.events.log_options import ITEM, USER
from bseq_plugin.events.relation import JSON, TEXT, Column, Relation, named, quoted
from bseq_plugin.readers.files import LogFile

SEPARATORS = (",", ";", "\t", "|")
HEAD_BYTES = 1 << 20
UTF16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class Head:
    """The first record of a file: its names, what stands between them, and the file's encoding."""

    names: tuple[str, ...]
    separator: str
    encoding: str


def glob_escaped(file: LogFile) -> str:
    """Return a path as a pattern that means itself, as SQL."""
    return quoted("".join(f"[{c}]" if c in "*?[" else c for c in str(file.path)))


def head_of(file: LogFile, wanted: set[str]) -> Head:
    """Return a text table's header.

    A .csv is separated by commas, or by what else makes the header hold the names that are wanted: ``;``, a tab, ``|``.

    Raises SchemaError for a file that is empty or no text.
    """
    start = _start(file)
    encoding = "utf-16" if start.startswith(UTF16) else "utf-8"
    try:
        # the last character may be cut in two
        text = start.decode(
            "utf-8-sig" if encoding == "utf-8" else encoding, "ignore" if len(start) == HEAD_BYTES else "strict"
        )
    except UnicodeError:
        raise SchemaError(
            f"{file.path} is not UTF-8; convert it first, for example: iconv -f latin1 -t utf-8"
        ) from None
    if not text.strip("\r\n \0"):
        raise SchemaError(f"{file.path} is empty: it has no header")
    found: list[tuple[int, int, list[str], str]] = []
    for separator in SEPARATORS if file.kind == "csv" else ("\t",):
        quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if file.kind == "csv" else csv.QUOTE_NONE
        try:
            names = next(csv.reader(io.StringIO(text, newline=""), delimiter=separator, quoting=quoting, strict=True))
        except (csv.Error, StopIteration):
            continue  # a quoted name ends before another separator
        found.append((len(wanted & set(names)), -len(found), names, separator))
    if not found:
        raise SchemaError(f"{file.path} can't be read as {file.kind}: the quotes of its header are broken")
    _, _, names, separator = max(found)
    return Head(tuple(names), separator, encoding)


def _start(file: LogFile) -> bytes:
    try:
        packed = None if file.compression == "none" else file.compression
        with pa.input_stream(str(file.path), compression=packed) as stream:
            start: bytes = stream.read(HEAD_BYTES)
            return start
    except (OSError, pa.ArrowException) as error:
        raise SchemaError(f"{file.path} can't be read: {error}") from None


def of_tables(connection: object, files: list[LogFile], wanted: set[str], name: str) -> Relation:
    """Return CSV, TSV or .inter files; ``wanted`` are the names of columns that will be read, if they are there."""
    heads = [head_of(file, wanted) for file in files]
    kinds: dict[str, str] = {}
    if files[0].kind == "inter":
        kinds = dict(label.partition(":")[::2] for head in heads for label in head.names)
        heads = [
            Head(tuple(label.partition(":")[0] for label in head.names), head.separator, head.encoding)
            for head in heads
        ]
    _same_columns(files, heads, wanted)
    names = [label for label in dict.fromkeys(heads[0].names) if label]
    groups: list[tuple[Head, list[LogFile]]] = []
    for head, file in zip(heads, files, strict=True):
        if groups and groups[-1][0] == head and groups[-1][1][0].compression == file.compression:
            groups[-1][1].append(file)
        else:
            groups.append((head, [file]))
    shared = [label for label in names if all(label in head.names for head in heads)]
    source = " UNION ALL ".join(_read_csv(head, group, shared) for head, group in groups)
    columns = {label: Column(f"c{place}", TEXT) for place, label in enumerate(shared)}
    if files[0].kind == "inter":
        columns = {
            label: Column(c.sql, TEXT if kinds[label] in ("token", "float") else "VARCHAR")
            for label, c in columns.items()
        }
    twice = frozenset(label for label in names if any(head.names.count(label) > 1 for head in heads))
    inter = files[0].kind == "inter"
    return Relation(
        connection,
        f"({source})",
        columns,
        name,
        file="bseq_file",
        twice=twice,
        float_seconds=inter,
        unit="s" if inter else None,
        quotes=files[0].kind == "csv",
    )


def _same_columns(files: list[LogFile], heads: list[Head], wanted: set[str]) -> None:
    """Raise SchemaError if a column that will be read is in some files and not in others."""
    for label in sorted(wanted):
        there = [label in head.names for head in heads]
        if any(there) and not all(there):
            lacking, having = files[there.index(False)].path, files[there.index(True)].path
            raise SchemaError(f"{lacking} lacks column {label!r}, which {having} has; write it into all files or none")


def _read_csv(head: Head, files: list[LogFile], shared: list[str]) -> str:
    raw = {f"f{place}": "VARCHAR" for place in range(len(head.names))}
    columns = ", ".join(f"{name}: 'VARCHAR'" for name in raw)
    chosen = ", ".join(f"f{head.names.index(label)} AS c{place}" for place, label in enumerate(shared))
    quote = '"' if files[0].kind == "csv" else ""
    how = (
        f"auto_detect = false, header = true, columns = {{{columns}}}, delim = {quoted(head.separator)}, "
        f"quote = '{quote}', escape = '{quote}', comment = '', nullstr = '', compression = '{files[0].compression}', "
        f"encoding = '{head.encoding}', filename = 'bseq_file'"
    )
    paths = ", ".join(glob_escaped(file) for file in files)
    # of one file the name need not be carried along with each row
    file = f"{quoted(str(files[0].path))} AS bseq_file" if len(files) == 1 else "bseq_file"
    return f"SELECT {chosen + ', ' if chosen else ''}{file} FROM read_csv([{paths}], {how})"


def of_json_lines(connection: object, files: list[LogFile], wanted: set[str], name: str) -> Relation:
    """Return JSON lines, one object a line; a name that no object has is no column."""
    paths = ", ".join(glob_escaped(file) for file in files)
    how = (
        f"format = 'newline_delimited', records = true, compression = '{files[0].compression}', filename = 'bseq_file'"
    )
    every = Relation(connection, "", {}, name)
    seen = every.types_of(f"SELECT * FROM read_json([{paths}], {how}, sample_size = -1, maximum_depth = 1)")
    labels = [label for label in seen if label != "bseq_file"]
    columns = ", ".join(f"{named(label)}: 'JSON'" for label in labels)
    source = f"(SELECT * FROM read_json([{paths}], {how}, columns = {{{columns}}}))"
    return Relation(connection, source, {label: Column(named(label), JSON) for label in labels}, name, file="bseq_file")


def of_sequence_text(connection: object, files: list[LogFile], name: str) -> Relation:
    """Return lines ``user item item ...``, oldest first; only spaces and tabs part them. Raises SchemaError."""
    paths = ", ".join(glob_escaped(file) for file in files)
    how = (
        "auto_detect = false, header = false, columns = {'line': 'VARCHAR'}, delim = '\\x01', quote = '', escape = '', "
        f"comment = '', nullstr = '', compression = '{files[0].compression}', filename = 'bseq_file'"
    )
    lines = (
        "(SELECT regexp_split_to_array(trim(line, ' \t'), '[ \t]+') AS words, bseq_file, "
        f"row_number() OVER () AS bseq_line FROM read_csv([{paths}], {how}) )"
    )
    rows = f"(SELECT * FROM {lines} WHERE words IS NOT NULL AND words[1] <> '')"
    source = (
        "(SELECT words[1] AS u, unnest(words[2:]) AS i, unnest(range(len(words) - 1)) AS bseq_nth, bseq_line, "
        f"bseq_file FROM {rows})"
    )
    columns = {USER: Column("u", TEXT), ITEM: Column("i", TEXT)}
    relation = Relation(
        connection, source, columns, name, place="bseq_line * 4294967296 + bseq_nth", file="bseq_file", only_order=True
    )
    for user, file, line in relation.rows(
        f"SELECT words[1], bseq_file, bseq_line FROM {rows} WHERE len(words) = 1 ORDER BY bseq_line LIMIT 1"
    ):
        [(first,)] = relation.rows(f"SELECT min(bseq_line) FROM {lines} WHERE bseq_file = {quoted(file)}")
        raise SchemaError(f"{file}, line {line - first + 1}: user {user!r} has no items; write `user item item ...`")
    return relation
