"""``bseq publish``, ``bseq retrieve`` and ``bseq features``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer
from rich.progress import Progress
from rich.table import Table

from bseq_plugin.cli.common import (
    Columns,
    Items,
    KeyFile,
    Unit,
    as_id,
    check_output,
    column_mapping,
    note,
    out,
    pseudonymiser,
    read_table,
)
from bseq_plugin.cli.process import loading
from bseq_plugin.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

    from bseq_plugin.data.events import Events
    from bseq_plugin.serving.retriever import Retriever

FEAST_VIEW = "bseq_features"
StorePath = Annotated[Path, typer.Argument(help="Store directory.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(publish)
    app.command()(retrieve)
    app.command()(features)


def publish(
    run: Annotated[Path, typer.Argument(help="A finished run directory.")],
    store: Annotated[Path, typer.Option("--store", help="Store directory; made if it is not there.")],
    items: Annotated[
        Path | None,
        typer.Option("--items", help="Items table: those the run has never seen enter by its item encoders."),
    ] = None,
    log: Annotated[
        Path | None,
        typer.Option(
            "--log", help="With --items: the whole log by now, with events of new items; histories and popularity."
        ),
    ] = None,
    columns: Columns = None,
    timestamp_unit: Unit = None,
    pseudonymise: KeyFile = None,
    index: Annotated[str, typer.Option("--index", help="Index by name (`bseq plugins`), or auto.")] = "auto",
    recall: Annotated[float, typer.Option("--recall", help="auto: recall@100 of real interests to reach.")] = 0.99,
    memory_mb: Annotated[float | None, typer.Option("--memory-mb", help="auto: the most the index may take.")] = None,
    p99_ms: Annotated[float | None, typer.Option("--p99-ms", help="auto: the most a single query may take.")] = None,
    on_bad: Annotated[
        str, typer.Option("--on-bad", help="Items without a usable vector: error, or drop them.")
    ] = "error",
    blend: Annotated[
        Path | None,
        typer.Option("--blend", help="Blend to serve (`bseq fit-blend`); default: the run's, if any."),
    ] = None,
    dedup: Annotated[
        str, typer.Option("--dedup", help="Item ids that are there twice: error, or keep the last.")
    ] = "error",
    keep: Annotated[
        int | None, typer.Option("--keep", help="Remove old versions afterwards, but the newest so many (store gc).")
    ] = None,
) -> None:
    """Publish a run as the current version of a store: vectors, ids, index, encoder, verified before it is served.

    Example: `bseq publish runs/today --store store --keep 3`

    With this morning's new items: `bseq publish runs/today --store store --items items.parquet`, and if people had
    some of them since: `--log events.parquet`
    """
    with loading():
        from bseq_plugin.publishing.choose import IndexTarget
        from bseq_plugin.publishing.publish import publish as run_publish
        from bseq_plugin.publishing.publishable import Dedup, OnBad
        from bseq_plugin.serving.blend import Blend
        from bseq_plugin.store.retention import collect_garbage
        from bseq_plugin.store.store import Store

    if keep is not None and keep < 1:
        raise UsageError(f"--keep {keep}: give a whole number of 1 or more")
    target = IndexTarget(recall=recall, memory_mb=memory_mb, p99_ms=p99_ms)
    weights = Blend.of_run(run) if blend is None else Blend.load(blend)
    table = None if items is None else read_table(items)
    events = _log_by_now(log, columns, timestamp_unit, pseudonymise)
    with Progress(console=note, transient=True, disable=not note.is_terminal) as bar:
        users = bar.add_task("users", total=None)
        version = run_publish(
            run,
            store,
            blend=weights,
            index=index,
            items=table,
            log=events,
            target=target,
            on_bad=cast(OnBad, on_bad),
            dedup=cast(Dedup, dedup),
            report=lambda what, done, of: bar.update(users, completed=done, total=of),
        )
    note.print(f"published {version} in {store}")
    if keep is not None:
        removed = collect_garbage(Store(store), keep).removed
        note.print(f"removed {len(removed)} old version(s)")


def _log_by_now(
    log: Path | None, columns: list[str] | None, timestamp_unit: str | None, key_file: Path | None
) -> Events | None:
    hide = pseudonymiser(key_file)
    if log is not None:
        from bseq_plugin.readers.read_events import read_events

        return read_events(log, columns=column_mapping(columns), timestamp_unit=timestamp_unit, pseudonymise=hide)
    if columns or timestamp_unit or hide:
        raise UsageError("--column, --timestamp-unit and --pseudonymise say how --log is read; give it, or omit them")
    return None


def retrieve(
    store: StorePath,
    user: Annotated[str | None, typer.Option("--user", help="A user id of the store.")] = None,
    items: Annotated[
        str | None, typer.Option("--items", help="An anonymous history: item ids, oldest first, with commas.")
    ] = None,
    k: Annotated[int, typer.Option("--k", help="How many candidates.")] = 20,
    exclude: Annotated[
        str, typer.Option("--exclude", help="seen: only items new to the user; none: blended with history.")
    ] = "seen",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    pseudonymise: KeyFile = None,
) -> None:
    """Candidates for a user of the store, or for a history given here.

    Example: `bseq retrieve store --user 42 --k 10`, or `bseq retrieve store --items 1001,1002 --json`

    In a store of pseudonyms `--pseudonymise key` finds the raw id that `--user` names.
    """
    hide = pseudonymiser(pseudonymise)
    if (user is None) == (items is None):
        raise UsageError("give either --user ID or --items a,b,c")
    if exclude not in ("seen", "none"):
        raise UsageError(f"--exclude {exclude!r}: use seen or none")
    if k < 1:
        raise UsageError(f"--k {k}: give a whole number of 1 or more")
    with loading():
        from bseq_plugin.serving.retriever import Retriever

    if user is not None and hide is not None:
        user = hide.pseudonym(user)
    retriever = Retriever.open(store)
    candidates = _answer(retriever, user, items, k, exclude)
    if retriever.n_unknown_items:
        note.print(f"{retriever.n_unknown_items} event(s) of items that the catalogue does not have")
    if as_json:
        typer.echo(
            json.dumps({"version": retriever.version, "candidates": json.loads(candidates.to_json(orient="records"))})
        )
        return
    table = Table(title=f"{store} {retriever.version}", title_justify="left")
    for name in candidates.columns:
        table.add_column(name, justify="left" if name == "source" else "right")
    for row in candidates.itertuples(index=False):
        table.add_row(*(f"{value:.4f}" if isinstance(value, float) else str(value) for value in row))
    out.print(table)


def _answer(retriever: Retriever, user: str | None, items: str | None, k: int, exclude: str) -> pd.DataFrame:
    how = cast(Literal["seen", "none"], exclude)
    if user is not None:
        return retriever.retrieve([as_id(user, retriever.histories.user_ids, "--user")], k, how)
    given = [part.strip() for part in (items or "").split(",") if part.strip()]
    if not given:
        raise UsageError("--items is empty; give item ids separated by commas")
    known = retriever.model.vocabulary.item_ids
    return retriever.retrieve_items([as_id(item, known, "--items") for item in given], k, how)


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
    columns: Columns = None,
    timestamp_unit: Unit = None,
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
    from bseq_plugin.ranking.feast import feast_feature_view
    from bseq_plugin.ranking.spec import FeatureSpec
    from bseq_plugin.ranking.streaming import write_features
    from bseq_plugin.readers.read_events import read_events
    from bseq_plugin.serving.retriever import Retriever

    table = _candidates(candidates, at)
    retriever = Retriever.open(store)
    log = (
        retriever.histories
        if events is None
        else read_events(events, columns=column_mapping(columns), timestamp_unit=timestamp_unit, pseudonymise=hide)
    )
    chosen = FeatureSpec.default() if spec is None else FeatureSpec.load(spec)
    engine = FeatureEngine(log, chosen, model=retriever.model, items=None if items is None else read_table(items))
    with Progress(console=note, transient=True) as bar:
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
