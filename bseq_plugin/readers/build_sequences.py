"""From a log larger than memory to partitioned sequences, by DuckDB.

DuckDB validates the log, spreads it over files by a hash of the user, and sorts one file at a time; what is left to do
here is to cut the sorted events where the user changes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bseq_plugin.data.partitions import ITEMS, Partition, PartitionedSequences
from bseq_plugin.errors import BseqError, MissingDependencyError, SchemaError, UsageError
from bseq_plugin.events.events import EVENT_TYPE, ITEM, SESSION, TIME, USER
from bseq_plugin.events.pseudonyms import Pseudonymiser
from bseq_plugin.events.sequences import LISTS
from bseq_plugin.files import aside_of, put_in_place
from bseq_plugin.readers.checks_sql import column_checks
from bseq_plugin.readers.read_events import files_of

MIN_MEMORY_MB = 300
USERS_PER_ROW_GROUP = 1024  # what training reads at a time
DUCKDB_SHARE = 0.45  # of the memory: it counts its buffers only, and Python and the sorted part want the rest
BYTES_PER_EVENT = 200  # of a part while it is sorted and cut, all copies together
Report = Callable[[str, int, int], None]  # (what, done, of)


def build_sequences(
    source: str,
    out: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    timestamp_unit: str | None = None,
    memory_mb: int = 2000,
    partitions: int | None = None,
    threads: int | None = None,
    pseudonymise: Pseudonymiser | None = None,
    report: Report = lambda what, done, of: None,
) -> PartitionedSequences:
    """Write ``out`` (see ``PartitionedSequences``) from Parquet or CSV files; equal times keep the order of the log.

    Args:
        source: a file or glob, ``.parquet``, ``.csv`` or ``.tsv``; columns as for ``read_events``.
        memory_mb: the most memory the process takes.
        partitions: how many files; as many processes, or a divisor of it, can train on them. Default: 8, or as many
            as the memory asks for.
        pseudonymise: user ids become pseudonyms as they are read; no raw id is written, not to work files either.

    Raises:
        SchemaError: the log breaks the documented format: nothing is written.
        UsageError: no such file, an output that is there already, too little memory.
        BseqError: the disk is full, or DuckDB gives up; nothing is left.
    """
    if memory_mb < MIN_MEMORY_MB:
        raise UsageError(f"memory_mb = {memory_mb}; give {MIN_MEMORY_MB} or more")
    if partitions is not None and partitions < 1:
        raise UsageError(f"partitions = {partitions}; give 1 or more")
    target = Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} is there already and not empty; give another --out")
    log = _Log(source, dict(columns or {}), timestamp_unit, pseudonymise is not None)
    aside = aside_of(target)
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        with _connect(aside, memory_mb, threads) as connection:
            if pseudonymise is not None:
                _teach(connection, pseudonymise)
            _Build(connection, log, aside, memory_mb, partitions, report).run()
        shutil.rmtree(aside / "work")
        if target.is_dir():
            target.rmdir()  # fails if it is empty no more
        put_in_place(aside, target)
    except OSError as error:
        raise BseqError(f"sequences can't be written to {target}: {error}; nothing is left of it") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return PartitionedSequences.open(target)


def _connect(folder: Path, memory_mb: int, threads: int | None) -> Any:
    try:
        import duckdb
    except ImportError:
        raise MissingDependencyError(
            "logs larger than memory need DuckDB: pip install duckdb (or pip install 'bseq-plugin[scale]')"
        ) from None
    (folder / "work").mkdir()
    settings: dict[str, str | int | float | list[str]] = {
        "memory_limit": f"{int(memory_mb * DUCKDB_SHARE)}MB",
        "temp_directory": str(folder / "work" / "spill"),
        "threads": threads or len(os.sched_getaffinity(0)),
    }
    connection = duckdb.connect(config=settings)
    connection.execute("SET enable_progress_bar = false")  # ours says what is done
    connection.execute("SET TimeZone = 'UTC'")
    return connection


def _teach(connection: Any, pseudonymise: Pseudonymiser) -> None:
    """Give DuckDB the function ``bseq_pseudonym``: text in, text out, a column at a time."""

    def column(ids: Any) -> Any:
        return pa.array(pseudonymise.pseudonyms(ids.to_pandas()), pa.string())

    connection.create_function("bseq_pseudonym", column, ["VARCHAR"], "VARCHAR", type="arrow")


@dataclass(frozen=True)
class _Log:
    """A source, and how its columns are called in SQL."""

    source: str
    columns: dict[str, str]
    unit: str | None
    pseudonyms: bool = False

    def scan(self) -> str:
        """A table function over the files, with the place of each row."""
        files = files_of(self.source)
        suffixes = {file.suffix for file in files}
        if len(suffixes) > 1 or not suffixes <= {".parquet", ".csv", ".tsv"}:
            raise UsageError(
                f"{self.source!r} has files {', '.join(sorted(suffixes))}; `bseq sequences` reads .parquet, .csv or "
                ".tsv, one kind at a time"
            )
        names = "[" + ", ".join(_quoted(str(file)) for file in files) + "]"
        if suffixes == {".parquet"}:
            place = "file_index::BIGINT * 1099511627776 + file_row_number"  # 2^40 rows a file
            return f"(SELECT *, {place} AS bseq_place FROM read_parquet({names}))"
        # ids are read as text, whatever they look like: 007 is not 7
        separator = "\\t" if suffixes == {".tsv"} else ","
        head = f"header = true, all_varchar = true, delim = '{separator}'"
        return f"(SELECT *, row_number() OVER () AS bseq_place FROM read_csv({names}, {head}))"

    def name(self, ours: str) -> str:
        """A column's name in the source."""
        return self.columns.get(ours, ours)


class _Build:
    def __init__(
        self, connection: Any, log: _Log, out: Path, memory_mb: int, partitions: int | None, report: Report
    ) -> None:
        self.connection, self.log, self.out, self.report = connection, log, out, report
        self.memory_mb, self.n_partitions = memory_mb, partitions
        self.types = self._types()

    def run(self) -> None:
        """Validate, spread, sort; the files of ``PartitionedSequences``."""
        self.report("validate", 0, 1)
        kinds, n_events = self._validated()
        self.report("validate", 1, 1)
        n = self.n_partitions or max(8, -(-n_events * BYTES_PER_EVENT // int(self.memory_mb * 1e6 * 0.4)))
        work = self.out / "work" / "events"
        self.report("spread", 0, 1)
        chosen = ", ".join(f"{sql} AS {name}" for name, sql in kinds.items())
        self._rows(
            f"COPY (SELECT {chosen}, bseq_place AS place, (hash({kinds[USER]}) % {n})::INTEGER AS part "
            f"FROM {self.log.scan()}) TO {_quoted(str(work))} "
            "(FORMAT parquet, PARTITION_BY (part), COMPRESSION 'lz4_raw', ROW_GROUP_SIZE 100000)"
        )
        self.report("spread", 1, 1)
        partitions, last_us = [], None
        for number in range(n):
            self.report("sort", number, n)
            partition, newest = self._part(work / f"part={number}", number, kinds)
            partitions.append(partition)
            last_us = newest if last_us is None else max(last_us, newest or last_us)
        self.report("sort", n, n)
        every = f"read_parquet({_quoted(f'{work}/*/*.parquet')}, hive_partitioning = false)"
        self._rows(
            f"COPY (SELECT {ITEM}, count(*) AS count FROM {every} GROUP BY {ITEM} ORDER BY {ITEM}) "
            f"TO {_quoted(str(self.out / ITEMS))} (FORMAT parquet)"
        )
        types = []
        if EVENT_TYPE in kinds:
            types = [row[0] for row in self._rows(f"SELECT DISTINCT {EVENT_TYPE} FROM {every} ORDER BY 1")]
        columns = [LISTS[name] for name in LISTS if name in kinds]
        PartitionedSequences(self.out, partitions, columns, sorted(types), last_us).save_head()

    def _rows(self, text: str) -> list[tuple[Any, ...]]:
        """What a query gives, row by row."""
        rows: list[tuple[Any, ...]] = self._told(lambda: self.connection.execute(text).fetchall())
        return rows

    def _told(self, work: Callable[[], Any]) -> Any:
        """The result of ``work``; DuckDB's errors become ours."""
        import duckdb

        try:
            return work()
        except duckdb.OutOfMemoryException as error:
            raise UsageError(
                f"DuckDB does not get by with its part of {self.memory_mb} MB ({_first(error)}); raise --memory-mb"
            ) from None
        except duckdb.IOException as error:
            raise BseqError(f"DuckDB can't read or write: {_first(error)}; is the disk full? Nothing is left") from None
        except duckdb.Error as error:
            raise SchemaError(f"{self.log.source!r} can't be read: {_first(error)}") from None

    def _types(self) -> dict[str, str]:
        return dict(self._rows(f"SELECT column_name, column_type FROM (DESCRIBE SELECT * FROM {self.log.scan()})"))

    def _validated(self) -> tuple[dict[str, str], int]:
        """(our column -> its SQL, number of events) after one scan over all that the format asks for."""
        kinds, checks = column_checks(self.types, self.log.name, self.log.unit, self._rows, self.log.scan())
        wanted = ", ".join(f"count_if({check.bad})" for check in checks)
        [(n_events, *bad)] = self._rows(f"SELECT count(*), {wanted} FROM {self.log.scan()}")
        if n_events == 0:
            raise SchemaError(f"{self.log.source!r} has no events")
        for check, count in zip(checks, bad, strict=True):
            if count:
                shown = f"SELECT {check.shown} FROM {self.log.scan()} WHERE {check.bad} ORDER BY bseq_place LIMIT 1"
                [(example,)] = self._rows(shown)
                raise SchemaError(f"{check.told} ({count} rows, for example {example!r}); {check.remedy}")
        if self.log.pseudonyms:
            kinds[USER] = f"bseq_pseudonym(CAST({kinds[USER]} AS VARCHAR))"
        return kinds, int(n_events)

    def _part(self, folder: Path, number: int, kinds: dict[str, str]) -> tuple[Partition, int | None]:
        names = [name for name in (USER, *LISTS) if name in kinds]
        if folder.is_dir():
            files = f"read_parquet({_quoted(f'{folder}/*.parquet')}, hive_partitioning = false)"
            order = f"{USER}, {TIME}, place" if TIME in kinds else f"{USER}, place"
            query = f"SELECT {', '.join(names)} FROM {files} ORDER BY {order}"
            events = self._told(lambda: self.connection.sql(query).to_arrow_table())
        else:  # no user hashes here
            kind = {"BIGINT": pa.int64(), "VARCHAR": pa.string(), "DOUBLE": pa.float64()}
            types = ", ".join(f"typeof({kinds[name]})" for name in names)
            [of] = self._rows(f"SELECT {types} FROM {self.log.scan()} LIMIT 1")
            events = pa.table({name: pa.array([], kind[found]) for name, found in zip(names, of, strict=True)})
        file = self.out / f"part-{number:05d}.parquet"
        users = _write_part(events, file)
        newest = pc.max(events[TIME]).as_py() if TIME in names else None
        return Partition(file.name, users, events.num_rows, file.stat().st_size), newest


def _write_part(events: pa.Table, path: Path) -> int:
    """Events in the order of users and time as one row a user; the number of users."""
    flat = {name: events[name].combine_chunks() for name in events.column_names}
    users = flat[USER]
    same = pc.equal(users.slice(1), users.slice(0, max(len(users) - 1, 0))).to_numpy(zero_copy_only=False)
    starts = np.concatenate([np.zeros(min(len(users), 1), np.int64), np.flatnonzero(~same.astype(bool)) + 1])
    offsets = pa.array(np.append(starts, len(users)).astype(np.int32))
    columns = {USER: users.take(pa.array(starts))}
    for name, values in flat.items():
        if name == SESSION:
            values = pa.array(pd.factorize(values.to_pandas())[0].astype(np.int64))
        if name in LISTS:
            columns[LISTS[name]] = pa.ListArray.from_arrays(offsets, values)
    pq.write_table(pa.table(columns), path, row_group_size=USERS_PER_ROW_GROUP)
    return len(starts)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _first(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:300]
