"""Interest vectors on disk: one file of a store version, or a file a partition that the processes of a run wrote.

    RUN/interests/interests.json       {"schema", "model_blake3", "log_sha256", "files"}, written last
    RUN/interests/part-00000.parquet   the users of the partition of that name, in its order

A row an interest: user_id, event_timestamp (newest event), n_events, interest_idx, vector float32. Users without an
event have no row. Shape letters: U users, K interests a user, D width.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from blake3 import blake3
from torch import Tensor

from bseq_plugin.errors import SchemaError
from bseq_plugin.events.events import USER
from bseq_plugin.events.sequences import Sequences
from bseq_plugin.files import fsync, write_json
from bseq_plugin.recipe.recipe import Recipe

SCHEMA = 1
HEAD = "interests.json"
MODEL_FILES = ("encoder.safetensors", "items.safetensors", "recipe.json")  # what interests depend on
REMEDY = "remove the folder of interests, and they are computed when the run is published"


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


def interest_table(histories: Sequences, interests_UKD: Tensor) -> pa.Table:
    """Return the rows of users with events, user by user."""
    users = np.flatnonzero(histories.lengths)
    _, n_interests, dim = interests_UKD.shape
    repeated = np.repeat(users, n_interests)
    if histories.timestamps is None:
        newest = pa.nulls(len(repeated), pa.timestamp("us", "UTC"))
    else:
        newest = pa.array(histories.timestamps[histories.offsets[1:][repeated] - 1]).cast(pa.timestamp("us", "UTC"))
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(interests_UKD[torch.from_numpy(users)].flatten().numpy()), dim)
    columns = {
        USER: pa.array(histories.user_ids).take(pa.array(repeated)),  # of one type, should nobody have an event
        "event_timestamp": newest,
        "n_events": pa.array(histories.lengths[repeated]),
        "interest_idx": pa.array(np.tile(np.arange(n_interests), len(users))),
        "vector": vectors,
    }
    return pa.table(columns)


@dataclass(frozen=True)
class InterestFiles:
    """The interests of a run's users, a file a partition."""

    folder: Path

    def seal(self, model: Path, log_sha256: str) -> None:
        """Say that all files are there, and of which model (a folder) and log they are; all of it on the disk."""
        paths = sorted(self.folder.glob("part-*.parquet"))
        document = {
            "schema": SCHEMA,
            "model_blake3": _digest(model / name for name in MODEL_FILES),
            "log_sha256": log_sha256,
            "files": {path.name: {"bytes": path.stat().st_size, "blake3": _digest([path])} for path in paths},
        }
        for path in paths:
            fsync(path)
        write_json(self.folder / HEAD, document)

    def fits(self, model: Path, log_sha256: str) -> bool:
        """Return whether the files were written to the end, and of this model and log."""
        try:
            head = self._head()
        except SchemaError:
            return False
        if (head.get("schema"), head.get("log_sha256")) != (SCHEMA, log_sha256):
            return False
        return bool(head.get("model_blake3") == _digest(model / name for name in MODEL_FILES))

    def open(self, partition: str) -> InterestFile:
        """Open the file of a partition, by the partition's file name. Raises SchemaError if it was changed since."""
        path, entry = self.folder / partition, self._head().get("files", {}).get(partition)
        try:
            if entry != {"bytes": path.stat().st_size, "blake3": _digest([path])}:
                raise SchemaError(f"interests {path} are damaged, their blake3 is not the sealed one; {REMEDY}")
            return InterestFile(path, pq.ParquetFile(path))
        except (OSError, pa.ArrowException) as error:
            raise SchemaError(f"interests {path} can't be read: {error}; {REMEDY}") from None

    def _head(self) -> dict[str, Any]:
        try:
            head = json.loads((self.folder / HEAD).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise SchemaError(f"{self.folder / HEAD} can't be read: {error}; {REMEDY}") from None
        if not isinstance(head, dict):
            raise SchemaError(f"{self.folder / HEAD} holds no object; {REMEDY}")
        return head


@dataclass(frozen=True)
class InterestFile:
    """The interests of one partition."""

    path: Path
    parquet: pq.ParquetFile

    def read(self, row_group: int, histories: Sequences, recipe: Recipe) -> Tensor:
        """Return float32 ``[U, K, D]`` of the users of ``histories``, zeros without an event.

        Raises SchemaError if the row group is of other users or of another width.
        """
        users = np.flatnonzero(histories.lengths)
        n_interests, dim = recipe.interests_per_user, recipe.interest_dim
        try:
            table = self.parquet.read_row_group(row_group, columns=[USER, "vector"])
            vectors, ids = table["vector"].combine_chunks(), table[USER].to_pandas().to_numpy()
        except (OSError, IndexError, KeyError, pa.ArrowException) as error:
            raise SchemaError(f"interests {self.path} can't be read: {error}; {REMEDY}") from None
        wanted, width = np.repeat(histories.user_ids[users], n_interests), getattr(vectors.type, "list_size", None)
        if width != dim or not np.array_equal(ids, wanted):
            raise SchemaError(
                f"interests {self.path} have {len(ids)} rows of width {width} in row group {row_group}; wanted "
                f"{len(wanted)} of width {dim}, of the users of the partition, in its order; {REMEDY}"
            )
        interests_UKD = torch.zeros(histories.n_users, n_interests, dim)
        flat = vectors.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
        interests_UKD[torch.from_numpy(users)] = torch.from_numpy(flat).view(len(users), n_interests, dim)
        return interests_UKD


def _digest(paths: Iterable[Path]) -> str:
    digest = blake3(max_threads=blake3.AUTO)
    for path in paths:
        digest.update_mmap(path)
    return digest.hexdigest()
