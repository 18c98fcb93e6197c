"""``bseq multitask``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import bseq_plugin as bseq
from bseq_behaviour.commands.opened import items_table, opened
from bseq_behaviour.commands.options import At, Log, Place
from bseq_plugin.commands import (
    AS_IT_IS,
    Items,
    KeyFile,
    LogOptions,
    Table,
    check_output,
    note,
    option_values,
    out,
    reads_log,
    write_json,
    write_parquet,
)

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from bseq_behaviour.multitask.moments import Objectives

METRICS = {"next_item": "NDCG@20", "all_action": "NDCG@20", "demand": "WAPE"}  # of all other objectives: AUROC


@reads_log
def multitask(
    place: Place,
    output: Annotated[Path, typer.Option("--out", help="Parquet file to write: a row a user, a column a task.")],
    tasks: Annotated[list[str] | None, typer.Option("--task", help="kind:days[:column=value]; repeat it.")] = None,
    next_item: Annotated[bool, typer.Option("--next-item", help="Learn which item comes next.")] = False,
    window_days: Annotated[
        float | None, typer.Option("--window-days", help="Learn every item of so many days (dense all-action).")
    ] = None,
    category: Annotated[
        str | None, typer.Option("--category", help="Column of --items: learn the units of each in the week.")
    ] = None,
    k: Annotated[int, typer.Option("--k", help="Items a user in --items-out.")] = 20,
    item_file: Annotated[
        Path | None, typer.Option("--items-out", help="Also write the k likeliest items of each user here.")
    ] = None,
    unit_file: Annotated[
        Path | None, typer.Option("--units-out", help="Also write the expected units of each category here.")
    ] = None,
    heads: Annotated[
        list[str] | None, typer.Option("--head", help="answer=name, e.g. tasks=mmoe or demand=kept_share; repeat it.")
    ] = None,
    weighting: Annotated[str, typer.Option("--weighting", help="Of the objectives: equal or uncertainty.")] = "equal",
    importance: Annotated[
        list[str] | None, typer.Option("--importance", help="objective=weight, e.g. all_action=3; repeat it.")
    ] = None,
    epochs: Annotated[int, typer.Option("--epochs", help="The best one is kept.")] = 6,
    at: At = None,
    in_sample: Annotated[
        bool, typer.Option("--in-sample", help="Learn also at instants that the encoder has seen beyond.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    save: Annotated[Path | None, typer.Option("--save", help="File for the trained model.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the model's quality here.")] = None,
    events: Log = None,
    items: Items = None,
    reading: LogOptions = AS_IT_IS,
    pseudonymise: KeyFile = None,
) -> None:
    """Several futures from one model: yes-or-no tasks, the next item, all items of a window, and the week's demand.

    A copy of the encoder is trained on with a head for each, at instants after the encoder's own training, and judged
    on the latest instant whose answers are known.

    Example: `bseq multitask runs/today --task churn:28 --task purchase:7 --next-item --out users.parquet
    --items-out next.parquet`

    With demand: `bseq multitask store --events log.parquet --items items.parquet --category department --task churn:28
    --importance demand=2 --out users.parquet --units-out units.parquet --save multitask.safetensors`
    """
    from typing import cast

    from bseq_behaviour.multitask.forecast_multitask import forecast_multitask
    from bseq_behaviour.multitask.multitask_file import save_multitask
    from bseq_behaviour.propensity.fit_heads import Weighting

    for path in (output, item_file, unit_file, save, json_file):
        check_output(path)
    if item_file is not None and not next_item and window_days is None:
        raise bseq.UsageError("--items-out needs an objective that has items: --next-item or --window-days")
    if unit_file is not None and category is None:
        raise bseq.UsageError("--units-out needs --category")
    chosen, weights = option_values(heads, "--head", "tasks=mmoe"), _weights(importance)
    at_us = None if at is None else bseq.instant_us(at)
    model, log = opened(place, events, reading, pseudonymise)
    objectives, names = _objectives(model, items_table(items), tasks, next_item, window_days, category)
    with note.status("learning several futures"):
        forecast = forecast_multitask(
            model, log, objectives, at_us, k=k, heads=chosen, weighting=cast(Weighting, weighting), importance=weights,
            epochs=epochs, allow_future_model=in_sample, seed=seed,
        )  # fmt: skip
    _show(forecast.quality)
    write_parquet(forecast.users, output)
    note.print(f"wrote {len(forecast.users):,} users to {output}")
    if item_file is not None:
        write_parquet(forecast.items, item_file)
        note.print(f"wrote {item_file}")
    if unit_file is not None:
        write_parquet(_units(names, forecast.units_C), unit_file)
        note.print(f"wrote {unit_file}")
    if save is not None:
        save_multitask(forecast.fit.model, save)
    if json_file is not None:
        told = {"epoch": forecast.fit.epoch, "instants": forecast.instants.__dict__}
        write_json(json_file, {"quality": forecast.quality, **told})


def _objectives(
    model: bseq.InterestModel,
    items: pd.DataFrame | None,
    tasks: list[str] | None,
    next_item: bool,
    window_days: float | None,
    category: str | None,
) -> tuple[Objectives, np.ndarray]:
    """Return what is learned, and the names of the categories."""
    from bseq_behaviour.categories import item_codes
    from bseq_behaviour.multitask.moments import Objectives
    from bseq_behaviour.propensity.tasks import Task

    asked = [Task.parse(text) for text in tasks or []]
    if len({task.name for task in asked}) < len(asked):
        raise bseq.UsageError(f"a task is there twice in {[task.name for task in asked]}")
    code_V, names = item_codes(model.vocabulary, items, category)
    counted = tuple((task, task.counts(model.vocabulary, items)) for task in asked)
    objectives = Objectives(counted, next_item, window_days, None if category is None else code_V)
    _ = objectives.names  # refused where there is none, before the work
    return objectives, names


def _units(names: np.ndarray, units_C: np.ndarray) -> pd.DataFrame:
    import pandas as pd

    table = pd.DataFrame({"category": names, "units": units_C})
    return table.sort_values("units", ascending=False, kind="stable", ignore_index=True)


def _weights(texts: list[str] | None) -> dict[str, float]:
    weights = option_values(texts, "--importance", "all_action=3")
    for name, weight in weights.items():
        if not isinstance(weight, int | float):
            raise bseq.UsageError(f"--importance {name}={weight}: give a number")
    return weights


def _show(quality: dict[str, float]) -> None:
    shown = Table("objective", "metric", "", title="on the latest known answers")
    for name, value in quality.items():
        shown.row(name, METRICS.get(name, "AUROC"), f"{value:.4f}")
    out.print(shown)
