"""``bseq sequences``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bseq_plugin.cli.common import KeyFile, pseudonymiser
from bseq_plugin.cli.log_options import AS_IT_IS, LogOptions, reads_log, require_source
from bseq_plugin.console import note, progress
from bseq_plugin.errors import UsageError
from bseq_plugin.events.summary import LogSummary


@reads_log
def sequences(
    source: Annotated[str, typer.Argument(help="Log, as `bseq train` takes it; with --seal a folder of parts.")],
    folder: Annotated[Path | None, typer.Option("--out", help="Folder to write; `bseq train` reads it.")] = None,
    memory_mb: Annotated[int, typer.Option("--memory-mb", help="The most memory to take.")] = 2000,
    partitions: Annotated[
        int | None, typer.Option("--partitions", help="Files to write; so many processes, or a divisor, train on them.")
    ] = None,
    threads: Annotated[int | None, typer.Option("--threads", help="Threads; default: all cores.")] = None,
    reading: LogOptions = AS_IT_IS,
    pseudonymise: KeyFile = None,
    seal: Annotated[
        bool, typer.Option("--seal", help="Describe parts that Spark or Ray wrote (see docs/formats.md).")
    ] = False,
) -> None:
    """Turn a log larger than memory into sequences, one row a user, in partitions by user.

    Example: `bseq sequences \'logs/*.parquet\' --out sequences --memory-mb 2000`, then
    `bseq train sequences --out runs/today`.
    """
    if seal:
        require_source(reading, False, "a log; --seal describes a folder as it is")
        if folder is not None:
            raise UsageError("--seal describes a folder as it is: give no --out")
        if pseudonymise is not None:
            raise UsageError("--seal describes a folder as it is: --pseudonymise can't change its user ids")
        from bseq_plugin.readers.seal import seal as describe

        parts = describe(Path(source), command=True)
    else:
        if folder is None:
            raise UsageError("say where to write: --out FOLDER")
        hide = pseudonymiser(pseudonymise)
        from bseq_plugin.readers.build_sequences import build

        with progress() as bar:
            tasks: dict[str, Any] = {}

            def report(what: str, done: int, of: int) -> None:
                if what not in tasks:
                    tasks[what] = bar.add_task(what, total=of)
                bar.update(tasks[what], completed=done)

            parts = build(source, folder, reading, memory_mb, partitions, threads, hide, report)
    if parts.summary is not None:
        note.print(str(LogSummary.of(parts.summary)))
    note.print(
        f"{parts.n_events:,} events of {parts.n_users:,} users in {len(parts.partitions)} partitions: {parts.folder}"
    )
