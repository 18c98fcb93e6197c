"""``bseq benchmark``: train and evaluate on a sequence file, over several seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from bseq_plugin.cli.common import RecipeName, Settings, check_output, note, out, whole_numbers
from bseq_plugin.cli.process import keep_freed_memory, loading
from bseq_plugin.files import write_json

BLENDED_WITH = ("transitions",)


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(benchmark)


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
        sequences,
        recipe or "reference",
        seeds=numbers,
        protocol=protocol,
        settings=chosen,
        sources=BLENDED_WITH if blend else (),
        report=note.print,
    )
    out.print(result.table())
    if json_file is not None:
        write_json(json_file, result.to_dict())
        note.print(f"wrote {json_file}")
