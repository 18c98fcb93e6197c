"""``bseq sequences DIR --seal``: parts that another engine wrote, checked and described."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from bseq_plugin.data.partitions import ITEMS, Partition, PartitionedSequences
from bseq_plugin.errors import SchemaError
from bseq_plugin.events.events import EVENT_TYPE, ITEM, TIME, USER
from bseq_plugin.events.log import Log
from bseq_plugin.events.log_options import LogOptions
from bseq_plugin.events.relation import Relation, connect, quoted
from bseq_plugin.events.sequence_columns import LISTS, ON_DISK, is_listed
from bseq_plugin.files import aside_of, whole_file
from bseq_plugin.readers.files import PART, LogFile
from bseq_plugin.readers.open_log import of_files

MEMORY = "1GB"


def seal(folder: Path, command: bool = False) -> PartitionedSequences:
    """Check parts that another engine wrote, and write ``items.parquet`` and ``sequences.json``.

    What is asked of a part is what ``read_events`` asks of it, and more: lists stand oldest first, and a user stands in
    one row of one part.

    Raises SchemaError naming part, user or row for a part that is not so; nothing is written then.
    """
    paths = sorted(folder.glob(PART))
    if not paths:
        raise SchemaError(f"{folder} has no files {PART}; write one row a user with lists (docs/formats.md)")
    work = aside_of(folder / "seal")
    try:
        with connect(memory_limit=MEMORY, temp_directory=str(work)) as connection:
            return _sealed(folder, paths, LogOptions(command=command), connection)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _sealed(folder: Path, paths: list[Path], options: LogOptions, connection: Any) -> PartitionedSequences:
    lists = of_files([LogFile(path, "parquet", "none") for path in paths], str(folder), options, connection)
    if not is_listed(lists.columns) or USER not in lists.columns:
        raise SchemaError(
            f"{folder}: parts have {USER!r} and {LISTS[ITEM]!r} and lists beside; found {list(lists.columns)}"
        )
    log = Log(lists, options)
    _require_order(lists)
    _require_one_place(lists)
    events = f"({log.events()})"
    partitions = [_partition(lists, path) for path in paths]
    names = [name for name in ON_DISK if name in lists.columns]
    labels, last_us = [], None
    if EVENT_TYPE in log.names:
        labels = [row[0] for row in lists.rows(f"SELECT DISTINCT {EVENT_TYPE} FROM {events} ORDER BY 1")]
    if TIME in log.names:
        [(last_us,)] = lists.rows(f"SELECT max({TIME}) FROM {events}")
    counts = connection.sql(f"SELECT {ITEM}, count(*) AS count FROM {events} GROUP BY 1 ORDER BY 1")
    with whole_file(folder / ITEMS) as items:
        pq.write_table(counts.to_arrow_table(), items)
    sequences = PartitionedSequences(folder, partitions, names, [label for label in labels if label], last_us)
    sequences.save_head()
    return sequences


def _partition(lists: Relation, path: Path) -> Partition:
    own = f"FROM {lists.source} WHERE {lists.file} = {quoted(str(path))}"
    [(users, events)] = lists.rows(f"SELECT count(*), coalesce(sum(len({lists.columns[LISTS[ITEM]].sql})), 0) {own}")
    return Partition(path.name, int(users), int(events), path.stat().st_size)


def _require_order(lists: Relation) -> None:
    """Raise SchemaError for a user whose times do not ascend."""
    if LISTS[TIME] not in lists.columns:
        return
    user, times = lists.columns[USER].sql, lists.columns[LISTS[TIME]].sql
    found = lists.rows(
        f"SELECT {user}, {lists.file} FROM {lists.source} WHERE {times} <> list_sort({times}) "
        f"ORDER BY {lists.place} LIMIT 1"
    )
    for first, file in found:
        raise SchemaError(f"{file}: events of user {first!r} are not oldest first; sort each user's lists by time")


def _require_one_place(lists: Relation) -> None:
    """Raise SchemaError for a user in two rows."""
    user, file = lists.columns[USER].sql, lists.file
    found = lists.rows(
        f"SELECT {user}, min({file}), max({file}) FROM {lists.source} GROUP BY 1 HAVING count(*) > 1 ORDER BY 1 LIMIT 1"
    )
    for twice, first, last in found:
        where = f"in {first} and {last}" if first != last else f"twice in {first}"
        raise SchemaError(f"user {twice!r} stands {where}; write one row a user, each user into one part")
