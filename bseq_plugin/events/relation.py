"""A log as DuckDB sees it: whatever it lies in, from here on there is one meaning of a row and of a column."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from bseq_plugin.errors import BseqError, MissingDependencyError, SchemaError, UsageError

TEXT = "TEXT"  # text of a file that holds nothing but text: numbers in it are to be recognised
JSON = "JSON"  # a value with a type of its own in every row
IN_ORDER = "row_number() OVER () - 1"  # a place that DuckDB counts, on one thread
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Column:
    """A column of the source: ``sql`` is its value, ``type`` DuckDB's name of its type, or TEXT, or JSON."""

    sql: str
    type: str


@dataclass(frozen=True)
class Relation:
    """A source of events.

    Attributes:
        source: what stands behind FROM.
        columns: by the names they have in the source.
        name: of the source, in errors.
        place: SQL of a number that ascends in the order of the log.
        file: SQL of the file a row stands in, if there are files.
        twice: names that stand in the source twice.
        float_seconds: times may be numbers with a fraction.
        unit: of times that are numbers, if none is asked for.
        only_order: the source has no times; its rows stand oldest first.
        quotes: whether quotes around a field mean something; if not, an id in quotes is a mistake.
    """

    connection: Any
    source: str
    columns: dict[str, Column]
    name: str
    place: str = IN_ORDER
    file: str | None = None
    twice: frozenset[str] = frozenset()
    float_seconds: bool = False
    only_order: bool = False
    unit: str | None = None
    quotes: bool = True

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Return what a query gives, row by row. Raises as ``told``."""
        found: list[tuple[Any, ...]] = told(lambda: self.connection.execute(query).fetchall(), self.name)
        return found

    def types_of(self, query: str) -> dict[str, str]:
        """Return the columns of a query and DuckDB's types of them."""
        return {row[0]: row[1] for row in self.rows(f"DESCRIBE {query}")}


def connect(**settings: str | int) -> Any:
    """Return a connection: of a database of its own if there are settings, else of the one of this process."""
    connection = _open(dict(settings)) if settings else _of_process(os.getpid()).cursor()
    connection.execute("SET enable_progress_bar = false")  # ours says what is done
    connection.execute("SET TimeZone = 'UTC'")
    return connection


@cache
def _of_process(number: int) -> Any:
    return _open({})


def _open(settings: dict[str, str | bool | int | float | list[str]]) -> Any:
    try:
        import duckdb
    except ImportError:
        raise MissingDependencyError("logs are read by DuckDB: pip install duckdb") from None
    return duckdb.connect(config=settings)


def quoted(text: str) -> str:
    """Return text as SQL."""
    return "'" + text.replace("'", "''") + "'"


def named(column: str) -> str:
    """Return a column's name as SQL."""
    return '"' + column.replace('"', '""') + '"'


def told(work: Callable[[], Answer], name: str, remedy_memory: str = "") -> Answer:
    """Return what ``work`` gives; DuckDB's errors become ours.

    Raises:
        UsageError: there is too little memory.
        BseqError: a file can't be read or written.
        SchemaError: what is read is not what it should be; with file and line where DuckDB knows them.
    """
    import duckdb

    try:
        return work()
    except duckdb.OutOfMemoryException as error:
        raise UsageError(f"DuckDB does not get by with its memory ({_first(error)}){remedy_memory}") from None
    except duckdb.IOException as error:
        if "No space left" in str(error) or "write" in str(error):
            raise BseqError(f"DuckDB can't write: {_first(error)}; is the disk full? Nothing is left") from None
        raise SchemaError(f"{name} can't be read: {_first(error)}") from None
    except (duckdb.Error, UnicodeError) as error:
        raise SchemaError(_plain(error, name)) from None


def _plain(error: Exception, name: str) -> str:
    """Return DuckDB's error without its advice, which speaks of options that we don't have."""
    text = str(error)
    file = re.search(r"^\s*file = (.*)$", text, re.M)
    where = file.group(1).strip() if file else name
    line = re.search(r"CSV Error on Line: (\d+)", text)
    if line:
        where += f", line {line.group(1)}"
    counts = re.search(r"Expected Number of Columns: (\d+) Found: (\d+)", text)
    if counts:
        return f"{where}: {counts.group(2)} fields, the header has {counts.group(1)}; repair this line"
    if "unterminated quote" in text:
        return f"{where}: a quote is not closed, or text follows a closing quote; double the quotes inside a field"
    if "Invalid unicode" in text or "byte sequence mismatch" in text:
        return f"{where} is not UTF-8; convert it first, for example: iconv -f latin1 -t utf-8"
    if "invalid state" in text:
        return f"{where}: line ends are mixed (some \\r\\n, some \\n), or quotes are broken; make it one kind: dos2unix"
    if "Maximum line size" in text:
        return f"{where}: a line is longer than 2 MB; is a quote not closed?"
    json = re.search(r'Malformed JSON in file "(.*)", at byte (\d+) in (?:line|record/value) (\d+): (.*)', text)
    if json:
        return f"{json.group(1)}, line {json.group(3)}, byte {json.group(2)}: no JSON: {json.group(4).strip(' .')}"
    return f"{where} can't be read: {_first(error)}"


def _first(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:300]
