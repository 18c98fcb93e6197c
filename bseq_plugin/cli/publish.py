"""``bseq publish``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from bseq_plugin.cli.common import KeyFile, loading, pseudonymiser, read_log, read_table
from bseq_plugin.cli.log_options import AS_IT_IS, LogOptions, reads_log, require_source
from bseq_plugin.console import note, progress
from bseq_plugin.errors import UsageError

if TYPE_CHECKING:
    from bseq_plugin.events.events import Events


@reads_log
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
    reading: LogOptions = AS_IT_IS,
    pseudonymise: KeyFile = None,
    index: Annotated[str, typer.Option("--index", help="Index by name (`bseq plugins`), or auto.")] = "auto",
    recall: Annotated[float, typer.Option("--recall", help="auto: recall@100 of real interests to reach.")] = 0.99,
    memory_mb: Annotated[float | None, typer.Option("--memory-mb", help="auto: the most the index may take.")] = None,
    p99_ms: Annotated[float | None, typer.Option("--p99-ms", help="auto: the most a single query may take.")] = None,
    on_bad: Annotated[
        str, typer.Option("--on-bad", help="Items without a usable vector: error, or drop them.")
    ] = "error",
    blend: Annotated[
        Path | None, typer.Option("--blend", help="Blend to serve (`bseq fit-blend`); default: the run's, if any.")
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
    events = _log_by_now(log, reading, pseudonymise)
    with progress() as bar:
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


def _log_by_now(log: Path | None, reading: LogOptions, key_file: Path | None) -> Events | None:
    hide = pseudonymiser(key_file)
    require_source(reading, log is not None, "--log")
    if log is not None:
        return read_log(log, reading, hide)
    if hide:
        raise UsageError("--pseudonymise says how --log is read; give it, or leave it out")
    return None
