"""Candidates for many users, to a file: a batch at a time, so that memory does not grow with the users."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from bseq_plugin.errors import UsageError
from bseq_plugin.events.ids import ids_like
from bseq_plugin.files import output_file
from bseq_plugin.serving.retriever import Retriever

BATCH = 1024  # users whose candidates are in memory at a time


def write_candidates(
    retriever: Retriever,
    users: object,
    path: str | Path,
    k: int = 20,
    *,
    report: Callable[[int], object] = lambda n_users: None,
    **how: Any,
) -> int:
    """Write what ``retriever.retrieve`` gives for each user as one Parquet file; return its number of rows.

    Rows stand in the order of the users, a row group for every 1,024 of them. The file is there whole or not at all,
    and all of it is of one version of the store.

    Args:
        users: ids of the store's users, in any container, each once.
        report: called with the number of users that are done since the last call.
        how: as for ``Retriever.retrieve``: exclude, blend, at, filters, diversity ...

    Raises:
        SchemaError, UsageError: ids of another kind, unknown or repeated ones, and as ``Retriever.retrieve``; before
            anything is written.
        BseqError: the file can't be written.
    """
    known = retriever.histories.user_ids
    asked = pd.Index(ids_like(users, known, "users"))
    _check(asked, pd.Index(known))
    version, rows, writer = retriever.version, 0, None
    with output_file(Path(path)) as file:
        try:
            for start in range(0, len(asked), BATCH):
                batch = asked[start : start + BATCH]
                table = _table(retriever.retrieve(batch, k, **how), known)
                if retriever.version != version:
                    raise UsageError(f"the store went from {version} to {retriever.version} meanwhile; ask again")
                writer = writer or pq.ParquetWriter(file, table.schema)
                writer.write_table(table)
                rows += len(table)
                report(len(batch))
        finally:
            if writer is not None:
                writer.close()
    return rows


def _check(asked: pd.Index, known: pd.Index) -> None:
    if not len(asked):
        raise UsageError("users is empty; give the ids of users of the store")
    if asked.has_duplicates:
        raise UsageError(f"user {asked[asked.duplicated()].tolist()[0]!r} is there twice; give each user once")
    unknown = asked[known.get_indexer(asked) < 0]
    if len(unknown):
        raise UsageError(
            f"{len(unknown)} of {len(asked)} users are not in this store version, for example "
            f"{unknown[:10].tolist()}; leave them out, or publish with their events"
        )


def _table(candidates: pd.DataFrame, known: np.ndarray) -> pa.Table:
    """Candidates with the same types in every batch, one of popular items alone included."""
    kind = pa.int64() if np.issubdtype(known.dtype, np.integer) else pa.string()
    table = pa.Table.from_pandas(candidates, preserve_index=False)
    return table.set_column(0, "user_id", table["user_id"].cast(kind)).replace_schema_metadata(None)
