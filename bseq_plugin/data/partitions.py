"""Sequences in files that are read a piece at a time: the form of a log larger than memory.

    DIR/sequences.json        {"schema", "partitions": [{"file", "users", "events", "bytes"}], ...}, written last
    DIR/part-00000.parquet    one row a user, as ``sequences.parquet``; a user stands in one file only
    DIR/items.parquet         item_id ascending, count

Any engine may write the parts (docs/formats.md); ``seal`` then writes the other two files.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bseq_plugin.errors import SchemaError
from bseq_plugin.events.events import ITEM, USER
from bseq_plugin.events.sequence_columns import ON_DISK
from bseq_plugin.events.sequences import Sequences
from bseq_plugin.events.vocabulary import Vocabulary
from bseq_plugin.files import write_json

SCHEMA = 1
HEAD, ITEMS = "sequences.json", "items.parquet"


@dataclass(frozen=True)
class Partition:
    """One file: its name, how many users and events it has, and its size in bytes."""

    file: str
    users: int
    events: int
    bytes: int


@dataclass(frozen=True)
class PartitionedSequences:
    """What ``sequences.json`` says; histories are read with ``read``.

    Attributes:
        columns: which of ``ON_DISK`` there are.
        event_types: names in ascending order.
        last_us: time of the newest event, None without times.
        summary: what was read of the log, and what was left out (``LogSummary``); None of parts of another engine.
    """

    folder: Path
    partitions: list[Partition]
    columns: list[str]
    event_types: list[str] = field(default_factory=list)
    last_us: int | None = None
    summary: dict[str, Any] | None = None

    @classmethod
    def open(cls, folder: Path) -> PartitionedSequences:
        """Read ``sequences.json`` and see that every file is there in full. Raises SchemaError naming the file."""
        try:
            document = json.loads((folder / HEAD).read_text(encoding="utf-8"))
            if document["schema"] != SCHEMA:
                raise SchemaError(f"{folder / HEAD} has schema {document['schema']!r}, this bseq reads {SCHEMA}")
            partitions = [Partition(**entry) for entry in document["partitions"]]
            sequences = cls(folder, partitions, document["columns"], document["event_types"], document["last_us"])
            sequences = replace(sequences, summary=document.get("summary"))
        except FileNotFoundError:
            raise SchemaError(
                f"{folder} has no {HEAD}; make it with `bseq sequences`, or, for parts of another engine, "
                f"`bseq sequences {folder} --seal`"
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SchemaError(f"{folder / HEAD} can't be read: {type(error).__name__}: {error}") from None
        for partition in partitions:
            sequences._require_whole(partition)
        return sequences

    def _require_whole(self, partition: Partition) -> None:
        path = self.folder / partition.file
        if not path.is_file():
            raise SchemaError(f"partition {path} is missing; copy it again, or run `bseq sequences` again")
        if path.stat().st_size != partition.bytes:
            raise SchemaError(
                f"partition {path} has {path.stat().st_size} bytes, written were {partition.bytes}: it is truncated or "
                "was changed; copy it again, or run `bseq sequences` again"
            )

    @property
    def n_users(self) -> int:
        """The number of users in all partitions."""
        return sum(partition.users for partition in self.partitions)

    @property
    def n_events(self) -> int:
        """The number of events in all partitions."""
        return sum(partition.events for partition in self.partitions)

    @property
    def digest(self) -> str:
        """The sha256 of what ``sequences.json`` says."""
        head = json.dumps([self.columns, self.event_types, [asdict(partition) for partition in self.partitions]])
        return hashlib.sha256(head.encode()).hexdigest()

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """All items of the log, with their counts in the whole of it."""
        table = _read(self.folder / ITEMS)
        ids = table[ITEM].to_pandas().to_numpy()
        ids = ids if np.issubdtype(ids.dtype, np.integer) else ids.astype(object)
        return Vocabulary(ids, table["count"].to_numpy(), tuple(self.event_types))

    def row_group_users(self, partition: int) -> np.ndarray:
        """Return int64, the number of users of each row group of a partition."""
        metadata = self._file(partition).metadata
        return np.array([metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)], np.int64)

    def read(self, partition: int, row_groups: list[int], vocabulary: Vocabulary) -> Sequences:
        """Return the histories of some row groups, in this order. Raises SchemaError if they can't be read."""
        path = self.folder / self.partitions[partition].file
        try:
            table = self._file(partition).read_row_groups(row_groups, columns=[USER, *self.columns])
        except (OSError, pa.ArrowException) as error:
            raise SchemaError(f"partition {path} is damaged: {error}; copy it again") from None
        return Sequences.from_table(table, vocabulary, path.name)

    def read_all(self, vocabulary: Vocabulary) -> Sequences:
        """Return the histories of all users, in memory: 8 bytes an event and column."""
        parts = []
        for number, partition in enumerate(self.partitions):
            if partition.users:
                parts.append(self.read(number, list(range(len(self.row_group_users(number)))), vocabulary))
        return Sequences.join(parts)

    def nobody(self) -> Sequences:
        """Return one user without events, with the columns of the log."""
        none = np.empty(0, np.int64)
        columns = [none if name in self.columns else None for name in ON_DISK[1:]]
        return Sequences(np.zeros(1, np.int64), np.zeros(2, np.int64), none, *columns)

    def _file(self, partition: int) -> pq.ParquetFile:
        path = self.folder / self.partitions[partition].file
        try:
            return pq.ParquetFile(path)
        except (OSError, pa.ArrowException) as error:
            raise SchemaError(f"partition {path} can't be read as Parquet: {error}; copy it again") from None

    def save_head(self) -> None:
        """Write ``sequences.json``."""
        document: dict[str, Any] = {
            "schema": SCHEMA,
            "n_users": self.n_users,
            "n_events": self.n_events,
            "columns": self.columns,
            "event_types": self.event_types,
            "last_us": self.last_us,
            "partitions": [asdict(partition) for partition in self.partitions],
            "summary": self.summary,
        }
        write_json(self.folder / HEAD, document)


def _read(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise SchemaError(f"{path} can't be read: {error}; run `bseq sequences` again") from None
