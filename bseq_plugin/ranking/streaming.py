"""Features for more candidates than fit into memory: a table in pieces in, a Parquet file of row groups out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from bseq_plugin.errors import SchemaError, UsageError
from bseq_plugin.files import output_file
from bseq_plugin.ranking.engine import FeatureEngine
from bseq_plugin.ranking.table import FeatureTable

PIECE_ROWS = 50_000  # about 1.5 kB a row with all features and 64-wide vectors


def candidate_pieces(source: str | Path | pd.DataFrame, rows: int = PIECE_ROWS) -> Iterator[pd.DataFrame]:
    """The candidates in pieces of at most ``rows`` rows; a Parquet file is read piece by piece.

    Raises UsageError for a file that is missing or can't be read.
    """
    if rows < 1:
        raise UsageError(f"rows = {rows}; a piece has 1 row or more")
    if isinstance(source, pd.DataFrame):
        yield from (source[start : start + rows] for start in range(0, len(source), rows))
        return
    if not Path(source).is_file():
        raise UsageError(f"there is no file {str(source)!r}")
    try:
        for batch in pq.ParquetFile(source).iter_batches(rows):
            yield pa.Table.from_batches([batch]).to_pandas()
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{source} can't be read: {error}") from None


def stream_features(
    engine: FeatureEngine, pieces: Iterable[pd.DataFrame], at: object | None = None
) -> Iterator[FeatureTable]:
    """The table of each piece; the rows are the same bytes as in one table of everything.

    Candidates of one request should stand together: a request in two pieces is encoded twice.
    """
    for piece in pieces:
        if len(piece):
            yield engine.features(piece, at)


def write_features(
    engine: FeatureEngine,
    candidates: str | Path | pd.DataFrame,
    path: str | Path,
    at: object | None = None,
    rows: int = PIECE_ROWS,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Write the features of all candidates to Parquet, a row group a piece; returns the number of rows.

    Memory is that of one piece of ``rows`` rows. ``path`` holds the whole table or what it held before.

    Args:
        candidates: a DataFrame, or a Parquet file with its columns.
        progress: called with the rows of each piece that is done.

    Raises:
        UsageError: there are no candidates, or the folder of ``path`` does not exist.
        SchemaError: a piece has other columns than the first.
        BseqError: writing fails.
    """
    done = 0
    # the writer is closed before its file, also by an error
    with output_file(Path(path)) as file, ExitStack() as stack:
        writer: pq.ParquetWriter | None = None
        for table in stream_features(engine, candidate_pieces(candidates, rows), at):
            arrow = table.to_arrow()
            writer = writer or stack.enter_context(pq.ParquetWriter(file, arrow.schema))
            if not arrow.schema.equals(writer.schema):
                raise SchemaError(f"the rows from {done} on have other columns than those before: {arrow.schema.names}")
            writer.write_table(arrow, row_group_size=len(arrow))
            done += len(arrow)
            if progress is not None:
                progress(len(arrow))
        if writer is None:
            raise UsageError("there are no candidates: the table has no rows")
    return done
