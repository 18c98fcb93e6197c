"""``bseq returns``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import bseq_plugin as bseq
from bseq_behaviour.commands.opened import opened
from bseq_behaviour.commands.options import At, Log, Place
from bseq_plugin.commands import (
    AS_IT_IS,
    KeyFile,
    LogOptions,
    Table,
    check_output,
    note,
    out,
    reads_log,
    write_json,
    write_parquet,
)


@reads_log
def returns(
    place: Place,
    output: Annotated[Path, typer.Option("--out", help="Parquet file to write: a row a user, within_7 and so on.")],
    days: Annotated[
        list[float] | None, typer.Option("--days", help="Within so many; repeat it. Default: 7, 28.")
    ] = None,
    at: At = None,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the forecast's quality here.")] = None,
    events: Log = None,
    reading: LogOptions = AS_IT_IS,
    pseudonymise: KeyFile = None,
) -> None:
    """Returns: how likely each user is to come back within so many days.

    A small encoder of its own learns from every visit of the log when the next one came; it is judged on the latest
    instant whose answers are known, and its figures are printed. Of the run or store only the histories are read.

    Example: `bseq returns runs/today --days 7 --days 28 --out returns.parquet`

    As of an instant: `bseq returns store --events log.parquet --at 2017-12-01T00:00:00+00:00 --out returns.parquet`
    """
    from bseq_behaviour.returns.return_time import return_recipe
    from bseq_behaviour.returns.returns import forecast_returns

    for path in (output, json_file):
        check_output(path)
    at_us = None if at is None else bseq.instant_us(at)
    _, log = opened(place, events, reading, pseudonymise)
    with note.status("learning when users come back"):
        forecast = forecast_returns(log, days or [7.0, 28.0], at_us, return_recipe(log.values is not None, seed))
    title = "on the latest known answers"
    table = Table("within days", "came back", "expected", "AUROC", "average precision", title=title)
    for row in forecast.quality.itertuples(index=False):
        table.row(f"{row[0]:g}", f"{row[1]:.1%}", f"{row[2]:.1%}", f"{row[3]:.4f}", f"{row[4]:.4f}")
    out.print(table)
    write_parquet(forecast.chances, output)
    note.print(f"wrote {len(forecast.chances):,} users to {output}")
    if json_file is not None:
        write_json(json_file, {"quality": forecast.quality.to_dict("records")})
