"""``bseq features``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bseq_plugin.cli.common import Items, KeyFile, StorePath, check_output, pseudonymiser, read_log, read_table
from bseq_plugin.cli.log_options import AS_IT_IS, LogOptions, reads_log
from bseq_plugin.console import note, progress
from bseq_plugin.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

FEAST_VIEW = "bseq_features"


@reads_log
def features(
    store: StorePath,
    candidates: Annotated[Path, typer.Option("--candidates", help="Table with user_id, item_id (.parquet, .csv).")],
    output: Annotated[Path, typer.Option("--out", help="Parquet file to write.")],
    at: Annotated[
        str | None,
        typer.Option("--at", help="Instant of all requests, e.g. 2017-12-01T00:00:00+00:00; default: the column at."),
    ] = None,
    events: Annotated[
        str | None, typer.Option("--events", help="Log to read histories from; default: the store's.")
    ] = None,
    spec: Annotated[
        Path | None, typer.Option("--spec", help="TOML with the features to make; default: all built-in.")
    ] = None,
    items: Items = None,
    feast: Annotated[
        Path | None, typer.Option("--feast", help="Also write a Feast feature view of the file, as Python source.")
    ] = None,
    reading: LogOptions = AS_IT_IS,
    pseudonymise: KeyFile = None,
) -> None:
    """Ranking features of (user, candidate) pairs, from events strictly before an instant.

    `--pseudonymise key` is for the ids of `--events`; candidates from a store of pseudonyms have pseudonyms already.

    A Parquet file of candidates is read and written in pieces, so that it may be larger than memory.

    Example: `bseq features store --candidates candidates.parquet --at 2017-12-01T00:00:00+00:00 --out features.parquet`
    """
    check_output(output)
    check_output(feast)
    hide = pseudonymiser(pseudonymise)
    from bseq_plugin.ranking.engine import FeatureEngine
    from bseq_plugin.ranking.spec import FeatureSpec
    from bseq_plugin.ranking.streaming import write_features
    from bseq_plugin.ranking.table import feast_feature_view
    from bseq_plugin.serving.retriever import Retriever

    table = _candidates(candidates, at)
    retriever = Retriever.open(store)
    log = retriever.histories if events is None else read_log(events, reading, hide)
    chosen = FeatureSpec.default() if spec is None else FeatureSpec.load(spec)
    engine = FeatureEngine(log, chosen, model=retriever.model, items=None if items is None else read_table(items))
    with progress() as bar:
        task = bar.add_task("rows", total=_count(table))
        n_rows = write_features(engine, table, output, at, progress=lambda rows: bar.advance(task, rows))
    note.print(f"wrote {n_rows:,} rows, {len(engine.parts)} features to {output}")
    if feast is not None:
        feast.write_text(feast_feature_view(output, FEAST_VIEW, chosen.ttl_days or 0), encoding="utf-8")
        note.print(f"wrote the Feast feature view {FEAST_VIEW} to {feast}")


def _candidates(path: Path, at: str | None) -> pd.DataFrame | Path:
    """Return a Parquet file as it is, to be read in pieces; another table in memory, its times read."""
    if path.suffix == ".parquet" and path.is_file():
        return path
    import pandas as pd

    table = read_table(path)
    if at is None and "at" in table:
        table["at"] = [pd.Timestamp(value) for value in table["at"]]
    return table


def _count(table: pd.DataFrame | Path) -> int:
    import pyarrow.parquet as pq

    if not isinstance(table, Path):
        return len(table)
    try:
        return int(pq.ParquetFile(table).metadata.num_rows)
    except (ValueError, OSError) as error:  # pyarrow's errors are ValueErrors
        raise UsageError(f"{table} can't be read: {error}") from None
