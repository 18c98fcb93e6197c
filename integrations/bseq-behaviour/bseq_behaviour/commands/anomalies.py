"""``bseq anomalies``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import bseq_plugin as bseq
from bseq_behaviour.commands.opened import opened
from bseq_behaviour.commands.options import At, Log, Place
from bseq_plugin.commands import AS_IT_IS, KeyFile, LogOptions, Table, check_output, note, out, reads_log, write_parquet


@reads_log
def anomalies(
    place: Place,
    output: Annotated[Path, typer.Option("--out", help="Parquet file to write: a row a user who can be judged.")],
    at: At = None,
    days: Annotated[float, typer.Option("--days", help="Length of the window that is judged.")] = 14.0,
    rate: Annotated[float, typer.Option("--rate", help="False alarms asked for, as a share of clean users.")] = 0.01,
    windows: Annotated[int, typer.Option("--windows", help="Windows before that show what is normal.")] = 4,
    min_events: Annotated[int, typer.Option("--min-events", help="Fewer events in a window say nothing.")] = 5,
    min_history: Annotated[int, typer.Option("--min-history", help="Nor do fewer events before it.")] = 20,
    in_sample: Annotated[
        bool,
        typer.Option("--in-sample", help="Also windows that the encoder was trained on; surprise is then too low."),
    ] = False,
    event_file: Annotated[
        Path | None, typer.Option("--events-out", help="Also write the surprise of every event of the window here.")
    ] = None,
    events: Log = None,
    reading: LogOptions = AS_IT_IS,
    pseudonymise: KeyFile = None,
) -> None:
    """Users who lately behave unlike themselves: other items, a burst, other hours.

    Each user's window is compared with their own past and with clean windows before; so many windows after the
    encoder's training are needed, and one more. Thresholds keep the false-alarm rate that is asked for.

    Example: `bseq anomalies runs/today --events log.parquet --days 14 --rate 0.01 --out anomalies.parquet`
    """
    import numpy as np

    from bseq_behaviour.insight.anomalies import Detector, anomalous_events
    from bseq_behaviour.insight.anomalies import anomalies as run_anomalies
    from bseq_behaviour.insight.signals import SIGNALS, Window, window_signals

    for path in (output, event_file):
        check_output(path)
    if not 0 < rate < 1:
        raise bseq.UsageError(f"--rate {rate}: give a share between 0 and 1")
    window = Window(days, min_events, min_history)
    model, log = opened(place, events, reading, pseudonymise)
    if log.timestamps is None or not log.n_events:
        raise bseq.UsageError("anomalies are of a window of days: the log has no times")
    at_us = int(np.asarray(log.timestamps).max()) + 1 if at is None else bseq.instant_us(at)
    with note.status("comparing"):
        detector = Detector.fit(model, log, at_us, window, windows, in_sample)
        signals = window_signals(model, log, at_us, window, in_sample)
        judged = run_anomalies(log, signals, detector, rate)
    write_parquet(judged, output)
    shown = Table("user", "p", "leading", *SIGNALS)
    for row in judged[judged["flagged"]].head(10).to_dict("records"):
        cells = [f"{row[name]:.2f}" for name in SIGNALS]
        shown.row(str(row["user_id"]), f"{row['p_value']:.4f}", str(row["leading"]), *cells)
    out.print(shown)
    note.print(f"{int(judged['flagged'].sum())} of {len(judged):,} users flagged at a rate of {rate:g}; wrote {output}")
    if event_file is not None:
        write_parquet(anomalous_events(log, model, signals), event_file)
        note.print(f"wrote {event_file}")
