"""``bseq benchmark``: train and evaluate on a sequence file, over several seeds."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from bseq_plugin.cli.common import RecipeName, Settings, check_output, load_recipe, note, out
from bseq_plugin.cli.process import keep_freed_memory, loading
from bseq_plugin.errors import UsageError
from bseq_plugin.files import write_json

METRICS = ("recall@5", "ndcg@5", "recall@10", "ndcg@10")
BLEND, AVERAGE, AVERAGE_BLEND = "blend", "average", "average_blend"
BLEND_K = 10


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
        bool, typer.Option("--blend", help="Also blend with the item-transition graph, by a weight from validation.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
) -> None:
    """Train a recipe once per seed and evaluate over the whole catalogue with seen items masked, beside the baselines.

    The number of epochs comes from the validation. With `--protocol time` the recipe is then trained again on
    everything before the test, which is what the baselines know.

    Example: `bseq benchmark sequences.txt --recipe auto --seeds 0,1,2 --blend --json result.json`
    """
    try:
        numbers = [int(seed) for seed in seeds.split(",")]
    except ValueError:
        raise UsageError(f"--seeds {seeds!r}: write numbers separated by commas, for example 0,1,2") from None
    check_output(json_file)
    if "WORLD_SIZE" in os.environ:
        raise UsageError("benchmark runs in one process; under torchrun use train and evaluate")
    settings = [*(settings or []), f"split={protocol}"]
    load_recipe(recipe, settings)  # wrong settings end here, before a long log is read
    with loading():
        import bseq_plugin.training.train  # noqa: F401, for ``_trained``
        from bseq_plugin.readers.read_events import read_events

    keep_freed_memory()
    events = read_events(sequences)
    base = load_recipe(recipe, settings, events).replace(mask_seen=True)
    _check_test(events, base)  # before hours of training
    note.print(f"{recipe}: encoder = {base.encoder}, targets = {base.targets}")
    document = {
        "dataset": {
            "source": Path(sequences).name,
            "users": int(events.frame["user_id"].nunique()),
            "items": int(events.frame["item_id"].nunique()),
            "events": len(events),
        },
        "protocol": protocol,
        "recipe": recipe,
        "settings": settings[:-1],
        "resolved_recipe": base.model_dump(exclude={"seed"}),
        **_figures_of_seeds(events, base, numbers, blend),
    }
    _show(document)
    if json_file is not None:
        write_json(json_file, document)
        note.print(f"wrote {json_file}")


def _figures_of_seeds(events: Any, recipe: Any, seeds: list[int], blend: bool) -> dict[str, Any]:
    """Of each seed, their means, all seeds as one model, and the baselines."""
    runs: list[tuple[Path, Path]] = []
    rows: list[dict[str, Any]] = []
    baselines: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            path = Path(folder) / f"seed-{seed}"
            pair, row, measured = _one_seed(events, recipe.replace(seed=seed), path, not baselines, blend)
            runs.append(pair)
            rows.append(row)
            baselines = baselines or measured
        together = _together(events, runs) if blend and len(runs) > 1 else {}
    blended = {"blend_mean": _means([row[BLEND] for row in rows])} if blend else {}
    return {"seeds": rows, "mean": _means(rows), **blended, **together, "baselines": baselines}


def _means(rows: list[dict[str, Any]]) -> dict[str, float]:
    return {metric: sum(row[metric] for row in rows) / len(rows) for metric in METRICS}


def _together(events: Any, runs: list[tuple[Path, Path]]) -> dict[str, Any]:
    """All seeds as one model, alone and blended; ``runs``: what was stopped on the validation, and what is tested."""
    from bseq_plugin.evaluation.blended import blended_ranker
    from bseq_plugin.evaluation.evaluate import HeldOut, scorer_of
    from bseq_plugin.evaluation.rankers import interest_ranker

    selections, finals = ([pair[place] for pair in runs] for place in (0, 1))
    weight = HeldOut.of_run(selections[0], "validation").blend_weight(scorer_of(selections), BLEND_K)
    scorer, held_out = scorer_of(finals), _test(events, *runs[0])
    others = {AVERAGE: interest_ranker(scorer), AVERAGE_BLEND: blended_ranker(scorer, held_out.graph(), weight)}
    comparison, _ = held_out.compare(scorer, [5, 10], False, others)
    figures = {name: _figures(comparison, name) for name in others}
    figures[AVERAGE_BLEND]["weight"] = weight
    return figures


def _test(events: Any, selection: Path, final: Path) -> Any:
    from bseq_plugin.evaluation.evaluate import HeldOut

    return HeldOut.of_run(final, "test") if final == selection else HeldOut.after(events, selection, final)


def _check_test(events: Any, recipe: Any) -> None:
    """Raises SchemaError if a time split leaves nothing to learn from, to validate with or to test on."""
    from bseq_plugin.data.prepare import evaluation_set, prepare

    if recipe.split == "time":
        log = prepare(events, recipe)
        evaluation_set(log.sequences, log.recipe, "test")


def _trained(events: Any, recipe: Any, path: Path) -> tuple[Path, Path]:
    """(the run that was stopped on the validation, the run to test).

    With a time split the second is trained on everything before the test, for as many epochs as the first was best
    after: the baselines know the time of the validation too.
    """
    from bseq_plugin.data.events import instant_us
    from bseq_plugin.training.train import train

    selection = train(events, recipe, path)
    if recipe.split != "time":
        return selection.path, selection.path
    known = events.before(instant_us(selection.recipe.test_at))
    again = recipe.replace(split="none", stop_after=selection.info["best_epoch"])
    return selection.path, train(known, again, path.with_name(f"{path.name}-again")).path


def _one_seed(
    events: Any, recipe: Any, path: Path, baselines: bool, blend: bool
) -> tuple[tuple[Path, Path], dict[str, Any], dict[str, Any]]:
    import json
    import resource
    import statistics

    from bseq_plugin.evaluation.blended import blended_ranker
    from bseq_plugin.evaluation.evaluate import HeldOut, scorer_of

    started = time.perf_counter()
    selection, final = _trained(events, recipe, path)
    seconds = time.perf_counter() - started
    scorer, held_out, others = scorer_of([final]), _test(events, selection, final), {}
    if blend:
        weight = HeldOut.of_run(selection, "validation").blend_weight(scorer_of([selection]), BLEND_K)
        others[BLEND] = blended_ranker(scorer, held_out.graph(), weight)
    comparison, _ = held_out.compare(scorer, [5, 10], baselines, others)
    info = json.loads((selection / "run.json").read_text(encoding="utf-8"))
    lines = (selection / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    epochs = [json.loads(line) for line in lines]
    row = _figures(comparison, "model")
    if blend:
        row[BLEND] = {"weight": weight, **_figures(comparison, BLEND)}
    row |= {
        "seed": recipe.seed,
        "epochs": info["epochs"],
        "best_epoch": info["best_epoch"],
        "train_seconds": seconds,  # all of it: preparing, validating and writing too
        "seconds_per_epoch": statistics.median(epoch["seconds"] for epoch in epochs),
        "events_per_second": statistics.median(epoch["events_per_second"] for epoch in epochs),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    return (selection, final), row, {name: comparison.figures(name) for name in comparison.baselines}


def _figures(comparison: Any, ranker: str) -> dict[str, Any]:
    """Means over users, and their 95 % bootstrap intervals."""
    means = {metric: comparison.mean(ranker, metric) for metric in METRICS}
    return {**means, "intervals": {metric: list(comparison.intervals[ranker][metric]) for metric in METRICS}}


def _show(document: dict[str, Any]) -> None:
    title = f"{document['dataset']['source']}, {document['protocol']}, recipe {document['recipe']}, seen items masked"
    table = Table("", *METRICS, title=title)
    for name, figures in document["baselines"].items():
        table.add_row(name, *(f"{figures[metric]:.4f}" for metric in METRICS))
    for row in document["seeds"]:
        table.add_row(f"seed {row['seed']}", *(f"{row[metric]:.4f}" for metric in METRICS))
        if BLEND in row:
            name = f"seed {row['seed']}, blend (weight {row[BLEND]['weight']:g})"
            table.add_row(name, *(f"{row[BLEND][metric]:.4f}" for metric in METRICS))
    titles = {"mean": "mean", "mean, blend": "blend_mean", "seeds averaged": AVERAGE, "averaged, blend": AVERAGE_BLEND}
    for title, key in titles.items():
        if key in document:
            table.add_row(f"[bold]{title}[/bold]", *(f"[bold]{document[key][m]:.4f}[/bold]" for m in METRICS))
    out.print(table)
