"""``bseq demo``: the main job on real purchases, in a few minutes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bseq_plugin.cli.common import Settings, keep_freed_memory, loading
from bseq_plugin.console import Table, note, out

if TYPE_CHECKING:
    import pandas as pd

    from bseq_plugin.demo.job import Demo
    from bseq_plugin.serving.blend import Blend
    from bseq_plugin.serving.retriever import Retriever

QUICK_EVERY = 6
QUICK_SETTINGS = ["training.epochs=2", "objective.passes_per_epoch=2", "objective.n=8"]
N_EXAMPLES = 2


def demo(
    data: Annotated[str, typer.Option("--data", help="Data set: completejourney.")] = "completejourney",
    folder: Annotated[Path, typer.Option("--out", help="Where everything is written.")] = Path("demo"),
    quick: Annotated[
        bool, typer.Option("--quick", help="A sixth of the households, under a minute; figures mean little.")
    ] = False,
    settings: Settings = None,
) -> None:
    """The whole job on real grocery purchases: train, compare with the baselines, publish, retrieve, make features.

    Everything is chosen on November 2017; December is the test and is looked at once.

    Example: `bseq demo --out demo`
    """
    from bseq_plugin.data.auto_recipe import choose_recipe

    recipe = choose_recipe("completejourney", [*(QUICK_SETTINGS if quick else []), *(settings or [])])
    with loading():
        from bseq_plugin.demo.data import check_name, load
        from bseq_plugin.demo.job import Demo, take_folder

    check_name(data)
    take_folder(folder)
    note.print("1/7 Reading purchases")
    keep_freed_memory()
    job = Demo(load(data, QUICK_EVERY if quick else 1), recipe, folder, note.print)
    frame = job.data.events.frame
    note.print(
        f"{len(frame):,} purchases, {frame.user_id.nunique():,} households, {frame.item_id.nunique():,} products"
    )
    with job.step("selection", "2/7 Training to the end of October, stopping on November"):
        epochs, selection = job.choose()
    with job.step("training", f"3/7 Training through November, {epochs} epochs"):
        final = job.final(epochs)
    with job.step("blend", "4/7 Weighing interest against personal history on November"):
        blend = job.blend(selection)
    note.print(f"score = interest + {describe(blend)}")
    with job.step("publish", "5/7 Publishing vectors, index and encoder"):
        retriever = job.publish(final, blend)
    with job.step("evaluate", "6/7 Evaluating on December, beside the no-training baselines"):
        comparisons = job.evaluate(retriever)
    with job.step("features", "7/7 Candidates and ranking features of every household"):
        candidates = job.write_candidates(retriever)
        job.write_features(retriever, candidates)
    pictured = job.draw(comparisons)
    job.write_metrics(comparisons, epochs, blend)
    out.print(comparisons["new"].table("December 2017, products new to the household"))
    out.print(comparisons["all"].table("December 2017, all products"))
    _show_examples(job, retriever)
    for name in (*pictured, "metrics.json", "store", "candidates.parquet", "ranking_features.parquet"):
        out.print(f"{folder / name}")
    total = sum(job.seconds.values())
    steps = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in job.seconds.items())
    note.print(f"{total:.0f} s: {steps}")


def describe(blend: Blend) -> str:
    """Return the history part of a blend in words."""
    parts = f"{blend.history:.3g} x history (half life {blend.half_life_days:g} days)"
    if blend.recent:
        parts += f" + {blend.recent:.3g} x recent history ({blend.recent_half_life_days:g} days)"
    return parts


def _show_examples(job: Demo, retriever: Retriever) -> None:
    """Print what two households bought last and what they are offered."""
    names = job.data.items.set_index("item_id")["name"]
    histories = retriever.histories
    for place in (histories.n_users // 3, 2 * histories.n_users // 3)[:N_EXAMPLES]:
        user = histories.user_ids[place]
        last = histories.items[histories.offsets[place] : histories.offsets[place + 1]]
        bought = retriever.model.vocabulary.item_ids[last[last > 0][-5:] - 1]
        new = retriever.retrieve([user], 5)
        blended = retriever.retrieve([user], 5, exclude="none")
        table = Table("last bought", "new to them", "next basket", title=f"household {user}")
        for row in zip(_named(bought, names), _named(new.item_id, names), _named(blended.item_id, names), strict=False):
            table.row(*row)
        out.print(table)


def _named(item_ids: object, names: pd.Series) -> list[str]:
    return [str(names.get(item, item)) for item in list(item_ids)]  # type: ignore[call-overload]
