"""``bseq train`` and ``bseq evaluate``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from bseq_plugin.cli.allocator import keep_freed_memory
from bseq_plugin.cli.common import (
    Columns,
    Items,
    KeyFile,
    RecipeName,
    Settings,
    Source,
    Unit,
    check_output,
    column_mapping,
    load_recipe,
    note,
    out,
    parse_ks,
    pseudonymiser,
    read_table,
    write_json,
)
from bseq_plugin.cli.loading import loading
from bseq_plugin.errors import UsageError


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(train)
    app.command()(evaluate)


def train(
    source: Source,
    run: Annotated[Path, typer.Option("--out", help="Run directory to write.")],
    recipe: RecipeName = None,
    settings: Settings = None,
    items: Items = None,
    columns: Columns = None,
    timestamp_unit: Unit = None,
    pseudonymise: KeyFile = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after the last complete checkpoint.")] = False,
    checkpoint_steps: Annotated[
        int | None, typer.Option("--checkpoint-steps", help="Also a checkpoint every so many steps within an epoch.")
    ] = None,
    warm_start: Annotated[
        Path | None, typer.Option("--warm-start", help="A finished run to begin with; its items keep their rows by id.")
    ] = None,
    fast_row_update: Annotated[
        bool,
        typer.Option(
            "--fast-row-update/--no-fast-row-update",
            help="Row-wise Adagrad by fbgemm's pooled kernel on a CPU, or by its own.",
        ),
    ] = True,
) -> None:
    """Train an encoder on a log and leave a run directory.

    Example: `bseq train events.parquet --out runs/today --set split=time --set epochs=20`

    Without raw user ids in the run, nor in what is made of it: `--pseudonymise key`, a file of 32 random bytes.

    A log larger than memory: `bseq sequences 'logs/*.parquet' --out parts`, then `bseq train parts --out runs/today`

    On several processes: `torchrun --nproc-per-node 2 -m bseq_plugin.cli.main train events.parquet --out runs/today`
    """
    hide = pseudonymiser(pseudonymise)
    load_recipe(recipe, settings)  # wrong settings end here, before a long log is read
    with loading():
        from bseq_plugin.data.events import Events
        from bseq_plugin.data.partitions import PartitionedSequences
        from bseq_plugin.readers.read_events import read_events
        from bseq_plugin.training.train import train as run_training

    keep_freed_memory()
    table = None if items is None else read_table(items)
    events: Events | PartitionedSequences
    if Path(source).is_dir():
        if hide is not None:
            raise UsageError("--pseudonymise belongs to `bseq sequences`, which reads the raw ids; leave it away here")
        events = PartitionedSequences.open(Path(source))
        chosen = load_recipe(recipe, settings, events)
    else:
        events = read_events(source, columns=column_mapping(columns), timestamp_unit=timestamp_unit, pseudonymise=hide)
        chosen = load_recipe(recipe, settings, events)
    done = run_training(
        events,
        chosen,
        run,
        items=table,
        resume=resume,
        checkpoint_steps=checkpoint_steps,
        warm_start=warm_start,
        fast_row_update=fast_row_update,
    )
    if int(os.environ.get("RANK", "0")):  # under torchrun one rank speaks for all
        return
    info = done.info
    if info.get("validation"):
        figures = "  ".join(f"{name} {value:.4f}" for name, value in info["validation"].items())
        note.print(f"best epoch {info['best_epoch']} of {info['epochs']}: {figures}")
    note.print(f"run: {done.path}")


def evaluate(
    run: Annotated[Path, typer.Argument(help="A finished run directory.")],
    split: Annotated[str, typer.Option("--split", help="test or validation.")] = "test",
    k: Annotated[str, typer.Option("--k", help="Cut-offs, separated by commas.")] = "5,10,20",
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
) -> None:
    """Measure a run and the no-training floors on its held-out events, over the whole catalogue.

    Example: `bseq evaluate runs/today --split test --k 10,20 --json metrics.json`
    """
    ks = parse_ks(k)
    check_output(json_file)
    with loading():
        from bseq_plugin.evaluation.evaluate import evaluate_run

    comparison, document = evaluate_run(run, split, ks)
    out.print(comparison.table(f"{run} on {split}"))
    if json_file is not None:
        write_json(json_file, document)
        note.print(f"wrote {json_file}")
