"""``bseq score``."""

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


@reads_log
def score(
    place: Place,
    tasks: Annotated[list[str], typer.Option("--task", help="kind:days[:column=value]; repeat it.")],
    output: Annotated[Path, typer.Option("--out", help="Parquet file to write: a row a user, a column a task.")],
    at: At = None,
    inputs: Annotated[str, typer.Option("--inputs", help="vector, counts (recency, frequency), or both.")] = "both",
    head: Annotated[str, typer.Option("--head", help="Binary head by name (`bseq heads`).")] = "mlp",
    head_option: HeadOptions = None,
    weighting: Annotated[str, typer.Option("--weighting", help="Of the tasks: equal or uncertainty.")] = "equal",
    active_days: Annotated[
        float | None, typer.Option("--active-days", help="Only users with an event in so many days before.")
    ] = None,
    in_sample: Annotated[
        bool, typer.Option("--in-sample", help="Train heads also on instants that the encoder has seen beyond.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    save_heads: Annotated[Path | None, typer.Option("--save-heads", help="Folder for the trained heads.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the heads' quality here.")] = None,
    events: Log = None,
    items: Items = None,
    reading: LogOptions = AS_IT_IS,
    pseudonymise: KeyFile = None,
) -> None:
    """Propensities: how likely each user is to buy something, or to stay away, in the days that follow.

    Small heads are trained on user vectors (and counts) as of instants after the encoder's training, and judged on the
    latest instant whose answer is known; its figures are printed. So the log has to go on after the training, by two
    windows or more: train with `--set split=time`, or give a newer log.

    Example: `bseq score runs/today --task churn:28 --task purchase:7 --out scores.parquet`

    Only some items: `bseq score store --events log.parquet --items items.parquet --task purchase:28:department=DELI
    --out scores.parquet`
    """
    from typing import cast

    from bseq_behaviour.contract.choice import HeadChoice, checked_head
    from bseq_behaviour.propensity.fit_heads import HEADS_FILE, Weighting
    from bseq_behaviour.propensity.propensities import Question, fit_propensities
    from bseq_behaviour.propensity.propensities import score as run_score

    if save_heads is not None and save_heads.exists() and not save_heads.is_dir():
        raise bseq.UsageError(f"--save-heads {save_heads} is a file; name a folder")
    for path in (output, json_file, save_heads and save_heads / HEADS_FILE):
        check_output(path)
    options = option_values(head_option, "--head-option", "n_experts=8")
    checked_head("binary", HeadChoice(head, options))
    at_us = None if at is None else bseq.instant_us(at)
    model, log = opened(place, events, reading, pseudonymise)
    question = Question.of(
        model, log, tasks, items=items_table(items), active_days=active_days,
        allow_future_model=in_sample, until_us=at_us,
    )  # fmt: skip
    with note.status("training heads"):
        propensities = fit_propensities(
            question, inputs=inputs, head=head, options=options, weighting=cast(Weighting, weighting), seed=seed
        )
    title = "on the latest known answers"
    table = Table("task", "yes", "AUROC", "average precision", title=title)
    for row in propensities.quality.itertuples(index=False):
        table.row(row[0], f"{row[1]:.1%}", f"{row[2]:.4f}", f"{row[3]:.4f}")
    out.print(table)
    scores = run_score(question, propensities.heads, at_us)
    write_parquet(scores, output)
    note.print(f"wrote {len(scores):,} users to {output}")
    if save_heads is not None:
        propensities.heads.save(save_heads)
    if json_file is not None:
        told = {"head": head, "options": options, "instants": propensities.instants.__dict__}
        write_json(json_file, {"quality": propensities.quality.to_dict("records"), **told})
