"""From a log larger than memory to partitioned sequences, by DuckDB.

DuckDB spreads the log over files by a hash of the user, and sorts one file at a time; what is left to do here is to cut
the sorted events where the user changes. What is read is what ``read_events`` reads: both go through ``Log``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bseq_plugin.data.partitions import ITEMS, Partition, PartitionedSequences
from bseq_plugin.errors import BseqError, UsageError
from bseq_plugin.events.events import EVENT_TYPE, ITEM, SESSION, TIME, USER
from bseq_plugin.events.log import Log
from bseq_plugin.events.log_options import LogOptions, OnDuplicate, OnNull
from bseq_plugin.events.pseudonyms import Pseudonymiser
from bseq_plugin.events.relation import connect, quoted, told
from bseq_plugin.events.sequence_columns import LISTS
from bseq_plugin.events.summary import LogSummary, events_per_user
from bseq_plugin.files import aside_of, put_in_place
from bseq_plugin.readers.open_log import open_log

MIN_MEMORY_MB = 300
USERS_PER_ROW_GROUP = 1024  # what training reads at a time
DUCKDB_SHARE = 0.45  # of the memory: it counts its buffers only, and Python and the sorted part want the rest
BYTES_PER_EVENT = 200  # of a part while it is sorted and cut, all copies together
Report = Callable[[str, int, int], None]  # (what, done, of)
ARROW = {"BIGINT": pa.int64(), "VARCHAR": pa.string(), "DOUBLE": pa.float64()}


def build_sequences(
    source: object,
    out: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    timestamp_unit: str | None = None,
    time_zone: str | None = None,
    time_format: str | None = None,
    where: str | None = None,
    on_null: OnNull = "error",
    on_duplicate: OnDuplicate = "keep",
    limit_users: int | None = None,
    memory_mb: int = 2000,
    partitions: int | None = None,
    threads: int | None = None,
    pseudonymise: Pseudonymiser | None = None,
    report: Report = lambda what, done, of: None,
) -> PartitionedSequences:
    """Write ``out`` (see ``PartitionedSequences``) from whatever ``read_events`` reads, larger than memory or not.

    Equal times keep the order of the log. A stream of Arrow is spilled to disk as it is read.

    Args:
        source: as for ``read_events``, and so are columns, timestamp_unit, time_zone, time_format, where, on_null,
            on_duplicate and limit_users.
        memory_mb: the most memory the process takes.
        partitions: how many files; as many processes, or a divisor of it, can train on them. Default: 8, or as many
            as the memory asks for.
        pseudonymise: user ids become pseudonyms as they are read; no raw id is written, not to work files either.

    Raises:
        SchemaError: the log breaks the documented format: nothing is written.
        UsageError: no such file, an output that is there already, too little memory.
        BseqError: the disk is full, or DuckDB gives up; nothing is left.
    """
    options = LogOptions(
        dict(columns or {}), timestamp_unit, time_zone, time_format, where, on_null, on_duplicate, limit_users
    )
    return build(source, out, options, memory_mb, partitions, threads, pseudonymise, report)


def build(
    source: object,
    out: str | Path,
    options: LogOptions,
    memory_mb: int = 2000,
    partitions: int | None = None,
    threads: int | None = None,
    pseudonymise: Pseudonymiser | None = None,
    report: Report = lambda what, done, of: None,
) -> PartitionedSequences:
    """Do what ``build_sequences`` does, with all options of reading in one."""
    if memory_mb < MIN_MEMORY_MB:
        raise UsageError(f"memory_mb = {memory_mb}; give {MIN_MEMORY_MB} or more")
    if partitions is not None and partitions < 1:
        raise UsageError(f"partitions = {partitions}; give 1 or more")
    target = Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} is there already and not empty; give another --out")
    aside = aside_of(target)
    shutil.rmtree(aside, ignore_errors=True)
    try:
        (aside / "work").mkdir(parents=True)
        with _connection(aside / "work", memory_mb, threads) as connection:
            report("validate", 0, 1)
            relation = open_log(source, options, connection, stage=True)
            if relation is None:
                raise UsageError(f"{source!r} is nothing that `bseq sequences` reads; give what `bseq train` takes")
            log = Log(relation, options)
            report("validate", 1, 1)
            _Build(log, aside, memory_mb, partitions, report, pseudonymise).run()
        shutil.rmtree(aside / "work")
        if target.is_dir():
            target.rmdir()  # fails if it is empty no more
        put_in_place(aside, target)
    except OSError as error:
        raise BseqError(f"sequences can't be written to {target}: {error}; nothing is left of it") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return PartitionedSequences.open(target)


def _connection(work: Path, memory_mb: int, threads: int | None) -> Any:
    return connect(
        memory_limit=f"{int(memory_mb * DUCKDB_SHARE)}MB",
        temp_directory=str(work / "spill"),
        threads=threads or len(os.sched_getaffinity(0)),
    )


def _teach(connection: Any, pseudonymise: Pseudonymiser) -> None:
    """Give DuckDB the function ``bseq_pseudonym``: text in, text out, a column at a time."""

    def column(ids: Any) -> Any:
        return pa.array(pseudonymise.pseudonyms(ids.to_pandas()), pa.string())

    connection.create_function("bseq_pseudonym", column, ["VARCHAR"], "VARCHAR", type="arrow")


class _Build:
    def __init__(
        self,
        log: Log,
        out: Path,
        memory_mb: int,
        partitions: int | None,
        report: Report,
        pseudonymise: Pseudonymiser | None,
    ) -> None:
        self.log, self.out, self.report, self.memory_mb = log, out, report, memory_mb
        self.connection, self.n_partitions = log.relation.connection, partitions
        self.user = USER
        self.lengths: list[np.ndarray] = []
        if pseudonymise is not None:
            _teach(self.connection, pseudonymise)
            self.user = f"bseq_pseudonym(CAST({USER} AS VARCHAR))"

    def run(self) -> None:
        """Spread and sort; write the files of ``PartitionedSequences``."""
        n = self.n_partitions or max(8, -(-self.log.n_events * BYTES_PER_EVENT // int(self.memory_mb * 1e6 * 0.4)))
        work = self.out / "work" / "events"
        chosen = ", ".join(f"{self.user} AS {USER}" if name == USER else name for name in self.log.names)
        self.report("spread", 0, 1)
        self._rows(
            f"COPY (SELECT {chosen}, bseq_place AS place, (hash({USER}) % {n})::INTEGER AS part "
            f"FROM ({self.log.events(place=True)})) TO {quoted(str(work))} "
            "(FORMAT parquet, PARTITION_BY (part), COMPRESSION 'lz4_raw', ROW_GROUP_SIZE 100000)"
        )
        self.report("spread", 1, 1)
        every = f"read_parquet({quoted(f'{work}/*/*.parquet')}, hive_partitioning = false)"
        kinds = self.log.relation.types_of(f"SELECT {', '.join(self.log.names)} FROM {every}")
        partitions = []
        for number in range(n):
            self.report("sort", number, n)
            partitions.append(self._part(work / f"part={number}", number, kinds))
        self.report("sort", n, n)
        self._describe(every, partitions)

    def _describe(self, every: str, partitions: list[Partition]) -> None:
        """Write items.parquet and sequences.json."""
        self._rows(
            f"COPY (SELECT {ITEM}, count(*) AS count FROM {every} GROUP BY {ITEM} ORDER BY {ITEM}) "
            f"TO {quoted(str(self.out / ITEMS))} (FORMAT parquet)"
        )
        names, types, span = self.log.names, {}, (None, None)
        if EVENT_TYPE in names:
            types = dict(self._rows(f"SELECT {EVENT_TYPE}, count(*) FROM {every} GROUP BY 1 ORDER BY 1"))
        if TIME in names:
            [span] = self._rows(f"SELECT min({TIME}), max({TIME}) FROM {every}")
        lengths = np.concatenate(self.lengths)
        n_items = pq.read_metadata(self.out / ITEMS).num_rows
        summary = LogSummary(
            self.log.rows_read,
            self.log.left_out,
            int(lengths.sum()),
            len(lengths),
            n_items,
            events_per_user(lengths),
            *span,
            types,
        )
        columns = [LISTS[name] for name in LISTS if name in names]
        labels = sorted(label for label in types if label)
        PartitionedSequences(self.out, partitions, columns, labels, span[1], summary.to_dict()).save_head()

    def _rows(self, query: str) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = self._told(lambda: self.connection.execute(query).fetchall())
        return rows

    def _told(self, work: Callable[[], Any]) -> Any:
        return told(work, self.log.relation.name, f" within {self.memory_mb} MB; raise --memory-mb")

    def _part(self, folder: Path, number: int, kinds: dict[str, str]) -> Partition:
        names = [name for name in (USER, *LISTS) if name in kinds]
        if folder.is_dir():
            files = f"read_parquet({quoted(f'{folder}/*.parquet')}, hive_partitioning = false)"
            order = f"{USER}, {TIME}, place" if TIME in kinds else f"{USER}, place"
            query = f"SELECT {', '.join(names)} FROM {files} ORDER BY {order}"
            events = self._told(lambda: self.connection.sql(query).to_arrow_table())
        else:  # no user hashes here
            events = pa.table({name: pa.array([], ARROW[kinds[name]]) for name in names})
        file = self.out / f"part-{number:05d}.parquet"
        lengths = _write_part(events, file)
        self.lengths.append(lengths)
        return Partition(file.name, len(lengths), events.num_rows, file.stat().st_size)


def _write_part(events: pa.Table, path: Path) -> np.ndarray:
    """Write events in the order of users and time as one row a user; return the number of events of each."""
    flat = {name: events[name].combine_chunks() for name in events.column_names}
    users = flat[USER]
    same = pc.equal(users.slice(1), users.slice(0, max(len(users) - 1, 0))).to_numpy(zero_copy_only=False)
    starts = np.concatenate([np.zeros(min(len(users), 1), np.int64), np.flatnonzero(~same.astype(bool)) + 1])
    offsets = np.append(starts, len(users)).astype(np.int32)
    columns = {USER: users.take(pa.array(starts))}
    for name, values in flat.items():
        if name == SESSION:
            values = pa.array(pd.factorize(values.to_pandas())[0].astype(np.int64))
        if name in LISTS:
            columns[LISTS[name]] = pa.ListArray.from_arrays(pa.array(offsets), values)
    texts = [
        name
        for name, values in columns.items()
        if pa.types.is_list(values.type) and pa.types.is_string(values.type.value_type)
    ]
    # a dictionary makes numbers larger, and takes most of the time
    packed: Any = [f"{name}.list.element" for name in texts] or False
    pq.write_table(pa.table(columns), path, row_group_size=USERS_PER_ROW_GROUP, use_dictionary=packed)
    return np.diff(offsets)
