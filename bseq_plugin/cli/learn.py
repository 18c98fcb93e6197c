"""``bseq train``, ``bseq evaluate`` and ``bseq fit-blend``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from bseq_plugin.cli.common import (
    AsJson,
    Items,
    KeyFile,
    RecipeName,
    Settings,
    Source,
    check_output,
    keep_freed_memory,
    loading,
    parse_ks,
    pseudonymiser,
    read_log,
    read_table,
    sharding_of,
    whole_numbers,
)
from bseq_plugin.cli.log_options import AS_IT_IS, LogOptions, reads_log, require_source
from bseq_plugin.console import note, out
from bseq_plugin.errors import UsageError
from bseq_plugin.files import write_json

if TYPE_CHECKING:
    from bseq_plugin.data.partitions import PartitionedSequences
    from bseq_plugin.data.splits import Part
    from bseq_plugin.events.events import Events
    from bseq_plugin.events.pseudonyms import Pseudonymiser
    from bseq_plugin.matmul import Matmul


Finished = Annotated[Path, typer.Argument(help="A finished run directory.")]


@reads_log
def train(
    source: Source,
    run: Annotated[Path, typer.Option("--out", help="Run directory to write.")],
    recipe: RecipeName = None,
    settings: Settings = None,
    items: Items = None,
    reading: LogOptions = AS_IT_IS,
    pseudonymise: KeyFile = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after the last complete checkpoint.")] = False,
    checkpoint_steps: Annotated[
        int | None, typer.Option("--checkpoint-steps", help="Also a checkpoint every so many steps within an epoch.")
    ] = None,
    sharding: Annotated[
        list[str] | None,
        typer.Option("--sharding", help="How tables lie on several processes: a way for all, or table=way; repeat it."),
    ] = None,
    matmul: Annotated[
        str, typer.Option("--matmul", help="Type of large products in training: auto, float32 or bfloat16.")
    ] = "auto",
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

    Example: `bseq train events.parquet --out runs/today --set split=time --set training.epochs=20`

    Without raw user ids in the run, nor in what is made of it: `--pseudonymise key`, a file of 32 random bytes.

    A log larger than memory: `bseq sequences 'logs/*.parquet' --out parts`, then `bseq train parts --out runs/today`

    On several processes: `torchrun --nproc-per-node 2 -m bseq_plugin.cli.main train events.parquet --out runs/today`
    """
    hide = pseudonymiser(pseudonymise)
    from bseq_plugin.data.auto_recipe import choose_recipe

    choose_recipe(recipe, settings or [])  # wrong settings end here, before a long log is read
    with loading():
        from bseq_plugin.training.train import train as run_training

    keep_freed_memory()
    table = None if items is None else read_table(items)
    events = _log(source, reading, hide)
    done = run_training(
        events,
        choose_recipe(recipe, settings or [], events),
        run,
        items=table,
        resume=resume,
        checkpoint_steps=checkpoint_steps,
        warm_start=warm_start,
        sharding=sharding_of(sharding),
        matmul=cast("Matmul", matmul),
        fast_row_update=fast_row_update,
    )
    if not int(os.environ.get("RANK", "0")):  # under torchrun one rank speaks for all
        if done.info.get("validation"):
            figures = "  ".join(f"{name} {value:.4f}" for name, value in done.info["validation"].items())
            note.print(f"best epoch {done.info['best_epoch']} of {done.info['epochs']}: {figures}")
        note.print(f"run: {done.path}")


def _log(source: str, reading: LogOptions, hide: Pseudonymiser | None) -> Events | PartitionedSequences:
    """Return the log, in memory; of a folder of partitions these."""
    from bseq_plugin.data.partitions import PartitionedSequences
    from bseq_plugin.readers.files import holds_partitions

    if not Path(source).is_dir() or not holds_partitions(Path(source)):
        return read_log(source, reading, hide)
    require_source(reading, False, "`bseq sequences`, which reads the log")
    if hide is not None:
        raise UsageError("--pseudonymise belongs to `bseq sequences`, which reads the raw ids; leave it out here")
    return PartitionedSequences.open(Path(source))


def evaluate(
    run: Finished,
    split: Annotated[str, typer.Option("--split", help="test or validation.")] = "test",
    k: Annotated[str, typer.Option("--k", help="Cut-offs, separated by commas.")] = "5,10,20",
    blend: Annotated[
        Path | None, typer.Option("--blend", help="Also measure this blend (`bseq fit-blend`), as a store serves it.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
) -> None:
    """Measure a run and the no-training baselines on its held-out events, over the whole catalogue.

    Example: `bseq evaluate runs/today --split test --k 10,20 --json metrics.json`
    """
    ks = parse_ks(k)
    check_output(json_file)
    with loading():
        from bseq_plugin.evaluation.evaluate import evaluate as run_evaluation
        from bseq_plugin.serving.blend import Blend

    weights = None if blend is None else Blend.load(blend)
    result = run_evaluation(run, cast("Part", split), ks, blend=weights)
    out.print(result.table(f"{run} on {split}"))
    if json_file is not None:
        write_json(json_file, result.to_dict())
        note.print(f"wrote {json_file}")


def fit_blend(
    run: Finished,
    sources: Annotated[
        list[str] | None, typer.Option("--source", help="Candidate source to weigh (`bseq plugins`); repeat it.")
    ] = None,
    k: Annotated[int, typer.Option("--k", help="The weights of largest NDCG at this cut-off.")] = 20,
    output: Annotated[
        Path | None, typer.Option("--out", help="File to write; default: blend.json in the run, for `bseq publish`.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Weigh interest, personal history and candidate sources against each other on the run's validation.

    Example: `bseq fit-blend runs/today --source transitions`, then `bseq publish runs/today --store store`
    """
    check_output(output)
    with loading():
        from bseq_plugin.serving.blend import FILE
        from bseq_plugin.serving.fit_blend import fit_blend as run_fit

    path = output or run / FILE
    blend = run_fit(run, sources=sources or [], k=k)
    blend.save(path)
    found = {name: v for name, v in {**blend.weights(), **blend.sources, **blend.reached}.items() if name != "sources"}
    if as_json:
        typer.echo(json.dumps(found))
    for name, weight in {} if as_json else found.items():
        out.print(f"{name} {weight:.4g}")
    note.print(f"wrote {path}")


BLENDED_WITH = ("transitions",)


@reads_log
def benchmark(
    sequences: Annotated[str, typer.Argument(help="`user item item ...` text, or any other log.")],
    protocol: Annotated[
        Literal["leave-one-out", "time"],
        typer.Option(
            "--protocol",
            help="leave-one-out: the last event is the test target; time: all items of the horizon_days from test_at.",
        ),
    ] = "leave-one-out",
    recipe: RecipeName = "reference",
    settings: Settings = None,
    seeds: Annotated[str, typer.Option("--seeds", help="Seeds, separated by commas.")] = "0",
    blend: Annotated[
        bool,
        typer.Option("--blend", help="Also blend with the item transitions, as a store does, weight from validation."),
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
    reading: LogOptions = AS_IT_IS,
) -> None:
    """Train a recipe once per seed and evaluate over the whole catalogue with seen items masked, beside the baselines.

    The number of epochs comes from the validation. With `--protocol time` the recipe is then trained again on
    everything before the test, which is what the baselines know.

    Example: `bseq benchmark sequences.txt --recipe auto --seeds 0,1,2 --blend --json result.json`
    """
    numbers = whole_numbers(seeds, "--seeds", "0,1,2")
    check_output(json_file)
    from bseq_plugin.data.auto_recipe import choose_recipe

    chosen = settings or []
    # wrong settings end here, before a long log is read
    choose_recipe(recipe, [*chosen, f"split={protocol.replace('-', '_')}"])
    with loading():
        from bseq_plugin.evaluation.benchmark import benchmark as run_benchmark

    keep_freed_memory()
    result = run_benchmark(
        read_log(sequences, reading, None),
        recipe or "reference",
        seeds=numbers,
        protocol=protocol,
        settings=chosen,
        sources=BLENDED_WITH if blend else (),
        report=note.print,
        name=Path(sequences).name,
    )
    out.print(result.table())
    if json_file is not None:
        write_json(json_file, result.to_dict())
        note.print(f"wrote {json_file}")
