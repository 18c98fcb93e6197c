"""``bseq score``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from bseq_plugin.cli.common import (
    Columns,
    Items,
    KeyFile,
    Unit,
    check_output,
    column_mapping,
    note,
    option_values,
    out,
    pseudonymiser,
    read_table,
    write_parquet,
)
from bseq_plugin.errors import SchemaError, UsageError
from bseq_plugin.files import write_json

if TYPE_CHECKING:
    from bseq_plugin.data.sequences import Sequences
    from bseq_plugin.model.interest_model import InterestModel

Place = Annotated[Path, typer.Argument(help="A finished run, or a store: its current version.")]
Log = Annotated[str | None, typer.Option("--events", help="Log to read histories from; default: the run's or store's.")]
At = Annotated[str | None, typer.Option("--at", help="Instant, e.g. 2017-12-01T00:00:00+00:00; default: end of log.")]


HeadOptions = Annotated[
    list[str] | None, typer.Option("--head-option", help="key=value, a setting of the head; repeat it.")
]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(score)


def opened(
    place: Path,
    events: str | None,
    columns: list[str] | None,
    unit: str | None,
    key_file: Path | None,
    hides_user: bool = False,
) -> tuple[InterestModel, Sequences]:
    """The model and histories of a run or store, or histories of a log given now.

    ``hides_user``: the key is for an id of the command line as well. Raises UsageError for a key without anything to
    hide, SchemaError if the log lacks what the model reads.
    """
    from bseq_plugin.data.event_features import EventInputs
    from bseq_plugin.data.sequences import Sequences
    from bseq_plugin.model.interest_model import InterestModel
    from bseq_plugin.model.run import Run
    from bseq_plugin.readers.read_events import read_events
    from bseq_plugin.serving.retriever import Retriever

    hide = pseudonymiser(key_file)
    if hide is not None and events is None and not hides_user:
        raise UsageError(
            "--pseudonymise hides the ids of --events, and there are none; a run or store keeps the ids it has: "
            "train with --pseudonymise"
        )
    if (place / "run.json").is_file():
        if events is None and "partitions" in Run(place).info:
            raise UsageError(f"{place} was trained on partitions; give the log: --events")
        model, log = InterestModel.from_run(place), Run(place).sequences()
    else:
        retriever = Retriever.open(place, "exact")
        model, log = retriever.model, retriever.histories
    if events is not None:
        read = read_events(events, columns=column_mapping(columns), timestamp_unit=unit, pseudonymise=hide)
        log = Sequences.from_events(read, model.vocabulary)
    if lacking := EventInputs.of(model.recipe).lacking(log):
        raise SchemaError(f"the model reads {' and '.join(lacking)}, but the log has none; give another: --events")
    return model, log


def score(
    place: Place,
    tasks: Annotated[list[str], typer.Option("--task", help="kind:days[:column=value]; repeat it.")],
    output: Annotated[Path, typer.Option("--out", help="Parquet file to write: a row a user, a column a task.")],
    at: At = None,
    inputs: Annotated[str, typer.Option("--inputs", help="vector, counts (recency, frequency), or both.")] = "both",
    head: Annotated[str, typer.Option("--head", help="Binary head by name (`bseq plugins`).")] = "mlp",
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
    columns: Columns = None,
    timestamp_unit: Unit = None,
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

    from bseq_plugin.behaviour.fit import HEADS_FILE, Weighting
    from bseq_plugin.behaviour.heads import HeadChoice, checked_head
    from bseq_plugin.behaviour.propensities import Question, fit_propensities
    from bseq_plugin.behaviour.propensities import score as run_score
    from bseq_plugin.data.events import instant_us

    if save_heads is not None and save_heads.exists() and not save_heads.is_dir():
        raise UsageError(f"--save-heads {save_heads} is a file; name a folder")
    for path in (output, json_file, save_heads and save_heads / HEADS_FILE):
        check_output(path)
    options = option_values(head_option, "--head-option", "n_experts=8")
    checked_head("binary", HeadChoice(head, options))
    at_us = None if at is None else instant_us(at)
    model, log = opened(place, events, columns, timestamp_unit, pseudonymise)
    question = Question.of(
        model, log, tasks, items=None if items is None else read_table(items), active_days=active_days,
        allow_future_model=in_sample, until_us=at_us,
    )  # fmt: skip
    with note.status("training heads"):
        found = fit_propensities(
            question, inputs=inputs, head=head, options=options, weighting=cast(Weighting, weighting), seed=seed
        )
    title = "on the latest known answers"
    table = Table("task", "yes", "AUROC", "average precision", title=title, title_justify="left")
    for row in found.quality.itertuples(index=False):
        table.add_row(row[0], f"{row[1]:.1%}", f"{row[2]:.4f}", f"{row[3]:.4f}")
    out.print(table)
    scores = run_score(question, found.heads, at_us)
    write_parquet(scores, output)
    note.print(f"wrote {len(scores):,} users to {output}")
    if save_heads is not None:
        found.heads.save(save_heads)
    if json_file is not None:
        told = {"head": head, "options": options, "instants": found.instants.__dict__}
        write_json(json_file, {"quality": found.quality.to_dict("records"), **told})
