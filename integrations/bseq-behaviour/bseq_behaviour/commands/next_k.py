"""``bseq next-k``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bseq_behaviour.commands.opened import opened
from bseq_behaviour.commands.options import At, HeadOptions, Log, Place
from bseq_plugin.commands import (
    AS_IT_IS,
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


@reads_log
def next_k(
    place: Place,
    output: Annotated[Path, typer.Option("--out", help="Parquet file to write: k items a user, by expected number.")],
    k: Annotated[int, typer.Option("--k", help="How many events ahead.")] = 10,
    days: Annotated[float, typer.Option("--days", help="The next events are those of so many days.")] = 28.0,
    sequence_file: Annotated[
        Path | None, typer.Option("--sequences-out", help="Also write each user's likeliest sequence of events here.")
    ] = None,
    at: At = None,
    head: Annotated[str, typer.Option("--head", help="Sequence head by name (`bseq heads`).")] = "transformer",
    head_option: HeadOptions = None,
    epochs: Annotated[int, typer.Option("--epochs", help="Of the decoder; the best one is kept.")] = 4,
    in_sample: Annotated[
        bool, typer.Option("--in-sample", help="Learn also at instants that the encoder has seen beyond.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    save: Annotated[Path | None, typer.Option("--save", help="File for the trained decoder.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the decoder's quality here.")] = None,
    events: Log = None,
    reading: LogOptions = AS_IT_IS,
    pseudonymise: KeyFile = None,
) -> None:
    """Next events: the k items that each user is likeliest to take next, and the likeliest sequence of them.

    A decoder over the states of the frozen encoder learns at instants after the encoder's training and is judged on the
    latest one whose answers are known, beside the encoder's own top k ("one step").

    Example: `bseq next-k runs/today --k 10 --out next.parquet`

    With the sequences: `bseq next-k store --events log.parquet --out next.parquet --sequences-out sequences.parquet`
    """
    from bseq_behaviour.contract.choice import HeadChoice, checked_head
    from bseq_behaviour.next_k.decoder_file import save_decoder
    from bseq_behaviour.next_k.forecast_next_k import forecast_next_k
    from bseq_plugin import instant_us

    for path in (output, sequence_file, save, json_file):
        check_output(path)
    options = option_values(head_option, "--head-option", "dim=128")
    checked_head("sequence", HeadChoice(head, options))
    at_us = None if at is None else instant_us(at)
    model, log = opened(place, events, reading, pseudonymise)
    with note.status("learning what comes next"):
        forecast = forecast_next_k(
            model, log, k, at_us, days=days, head=head, options=options, epochs=epochs, allow_future_model=in_sample,
            seed=seed,
        )  # fmt: skip
    shown = Table("ranker", f"Recall@{k}", f"NDCG@{k}", title="on the latest known answers")
    for name, recall, ndcg in forecast.quality.itertuples(index=False):
        shown.row(name, f"{recall:.4f}", f"{ndcg:.4f}")
    out.print(shown)
    write_parquet(forecast.items, output)
    note.print(f"wrote {forecast.items['user_id'].nunique():,} users to {output}")
    if sequence_file is not None:
        write_parquet(forecast.sequences, sequence_file)
        note.print(f"wrote {sequence_file}")
    if save is not None:
        save_decoder(forecast.decoder, save, model)
    if json_file is not None:
        told = {"head": head, "options": options, "instants": forecast.instants.__dict__}
        write_json(json_file, {"quality": forecast.quality.to_dict("records"), **told})
