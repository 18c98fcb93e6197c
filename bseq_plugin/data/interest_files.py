"""Interest vectors on disk: one file of a store version, or a file a partition that the processes of a run wrote.

    RUN/interests/interests.json       {"schema", "encoder_sha256", "log_sha256", "files": [...]}, written last
    RUN/interests/part-00000.parquet   the users of the partition of that name, in its order

A row an interest: user_id, event_timestamp (newest event), n_events, interest_idx, vector float32. Users without an
event have no row. Shape letters: U users, K interests a user, D width.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from bseq_plugin.data.events import USER
from bseq_plugin.data.sequences import Sequences
from bseq_plugin.errors import SchemaError

SCHEMA = 1
HEAD = "interests.json"


class TableStream:
    """A Parquet file that is written table by table, all of one schema; without a table there is no file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: pq.ParquetWriter | None = None

    def write(self, table: pa.Table) -> None:
        """Append the rows, as one row group."""
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, table.schema)
        self._writer.write_table(table, row_group_size=max(1, len(table)))

    def close(self) -> None:
        """Write the end of the file."""
        if self._writer is not None:
            self._writer.close()

    def __enter__(self) -> TableStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def interest_table(histories: Sequences, interests_UKD: Tensor) -> pa.Table:
    """The rows of users with events, user by user."""
    users = np.flatnonzero(histories.lengths)
    _, n_interests, dim = interests_UKD.shape
    repeated = np.repeat(users, n_interests)
    if histories.timestamps is None:
        newest = pa.nulls(len(repeated), pa.timestamp("us", "UTC"))
    else:
        newest = pa.array(histories.timestamps[histories.offsets[1:][repeated] - 1]).cast(pa.timestamp("us", "UTC"))
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(interests_UKD[torch.from_numpy(users)].flatten().numpy()), dim)
    columns = {
        USER: pa.array(histories.user_ids[repeated]),
        "event_timestamp": newest,
        "n_events": pa.array(histories.lengths[repeated]),
        "interest_idx": pa.array(np.tile(np.arange(n_interests), len(users))),
        "vector": vectors,
    }
    return pa.table(columns)


def interests_of_table(table: pa.Table, histories: Sequences, n_interests: int, dim: int, name: str) -> Tensor:
    """float32 ``[U, K, D]`` of the users of ``histories``, zeros without an event; what ``interest_table`` was given.

    Raises SchemaError, which calls the table ``name``, if it is of other users or of another width.
    """
    users = np.flatnonzero(histories.lengths)
    wanted = np.repeat(histories.user_ids[users], n_interests)
    vectors = table["vector"].combine_chunks()
    width = getattr(vectors.type, "list_size", None)
    if len(table) != len(wanted) or width != dim or not np.array_equal(table[USER].to_pandas().to_numpy(), wanted):
        raise SchemaError(
            f"{name} has {len(table)} interests of width {width}; wanted {len(wanted)} of width {dim}, of the users of "
            "the partition, in its order: train again, or remove the folder and they are computed"
        )
    interests_UKD = torch.zeros(histories.n_users, n_interests, dim)
    flat = vectors.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    interests_UKD[torch.from_numpy(users)] = torch.from_numpy(flat.copy()).view(len(users), n_interests, dim)
    return interests_UKD


@dataclass(frozen=True)
class InterestFiles:
    """The interests of a run's users, a file a partition."""

    folder: Path

    def seal(self, encoder: Path, log_sha256: str) -> None:
        """Say that all files are there, and of which encoder and log they are."""
        document = {
            "schema": SCHEMA,
            "encoder_sha256": _sha256(encoder),
            "log_sha256": log_sha256,
            "files": sorted(path.name for path in self.folder.glob("part-*.parquet")),
        }
        aside = self.folder / f".{HEAD}.tmp"
        aside.write_text(json.dumps(document, indent=1), encoding="utf-8")
        os.replace(aside, self.folder / HEAD)

    def fits(self, encoder: Path, log_sha256: str) -> bool:
        """Whether the files are complete and of this encoder and log."""
        head = self.folder / HEAD
        if not head.is_file():
            return False
        document = json.loads(head.read_text(encoding="utf-8"))
        wanted = {"schema": SCHEMA, "encoder_sha256": _sha256(encoder), "log_sha256": log_sha256}
        return all(document.get(key) == value for key, value in wanted.items())

    def reader(self, partition: str) -> pq.ParquetFile:
        """The file of a partition, by the partition's file name. Raises SchemaError if it can't be read."""
        try:
            return pq.ParquetFile(self.folder / partition)
        except (OSError, pa.ArrowException) as error:
            raise SchemaError(
                f"interests {self.folder / partition} can't be read: {error}; remove {self.folder} and they are "
                "computed again"
            ) from None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
