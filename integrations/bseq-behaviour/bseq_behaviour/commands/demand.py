"""``bseq demand``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import bseq_plugin as bseq
from bseq_behaviour.commands.opened import items_table, opened
from bseq_behaviour.commands.options import At, HeadOptions, Log, Place
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

SHOWN = 12


@reads_log
def demand(
    place: Place,
    output: Annotated[Path, typer.Option("--out", help="Parquet file to write: category, week, units, week_before.")],
    items: Items,
    category: Annotated[str, typer.Option("--category", help="Column of --items.")],
    at: At = None,
    in_sample: Annotated[
        bool, typer.Option("--in-sample", help="Learn also from weeks that the encoder has seen.")
    ] = False,
    head: Annotated[str, typer.Option("--head", help="Count head by name (`bseq heads`).")] = "kept_share",
    head_option: HeadOptions = None,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the forecast's errors here.")] = None,
    events: Log = None,
    reading: LogOptions = AS_IT_IS,
    pseudonymise: KeyFile = None,
) -> None:
    """Demand: how many units of each category will be bought in the week that follows.

    The model learns from weeks after the encoder's training and is judged on the last complete one, beside two plain
    forecasts: that the week will be as the one before it, or as the mean of the four before.

    Example: `bseq demand runs/today --items items.parquet --category department --out demand.parquet`

    As of an instant: `bseq demand store --events log.parquet --items items.parquet --category department
    --at 2017-12-01T00:00:00+00:00 --out demand.parquet`
    """
    import pandas as pd

    from bseq_behaviour.categories import item_codes
    from bseq_behaviour.contract.choice import HeadChoice, checked_head
    from bseq_behaviour.demand.forecast_demand import forecast_demand

    for path in (output, json_file):
        check_output(path)
    options = option_values(head_option, "--head-option", "n_experts=8")
    checked_head("count", HeadChoice(head, options))
    at_us = None if at is None else bseq.instant_us(at)
    model, log = opened(place, events, reading, pseudonymise)
    codes_V, names = item_codes(model.vocabulary, items_table(items), category)
    with note.status("learning rates"):
        forecast = forecast_demand(
            model, log, codes_V, len(names), at_us, allow_future_model=in_sample, seed=seed, head=head, options=options
        )
    week = pd.Timestamp(forecast.at_us, unit="us", tz="UTC")
    frame = pd.DataFrame(
        {"category": names, "week": week, "units": forecast.units_C, "week_before": forecast.before_C}
    ).sort_values("units", ascending=False, kind="stable", ignore_index=True)
    write_parquet(frame, output)
    shown = Table("category", "units expected", "the week before", title=f"week from {week:%Y-%m-%d %H:%M} UTC")
    for row in frame.head(SHOWN).itertuples(index=False):
        shown.row(str(row[0]), f"{row[2]:,.0f}", f"{row[3]:,}")
    out.print(shown)
    errors = {"wape": forecast.wape, "naive_wape": forecast.naive_wape, "mean_wape": forecast.mean_wape}
    note.print(
        f"WAPE of the week before: {forecast.wape:.4f}; as the week before it {forecast.naive_wape:.4f}, as the mean "
        f"of four weeks {forecast.mean_wape:.4f}; learned from {forecast.n_weeks} weeks"
    )
    note.print(f"wrote {len(frame):,} categories to {output}")
    if json_file is not None:
        told = {"weeks": forecast.n_weeks, "units": float(forecast.units_C.sum()), "head": head, "options": options}
        write_json(json_file, errors | told)
