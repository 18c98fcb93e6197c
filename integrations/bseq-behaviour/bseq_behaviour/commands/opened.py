"""What a command works with: the model of a run or store, and histories."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import bseq_plugin as bseq
from bseq_plugin.commands import LogOptions, pseudonymiser, read_log, require_source

if TYPE_CHECKING:
    import pandas as pd


def opened(
    place: Path, events: str | None, reading: LogOptions, key_file: Path | None, hides_user: bool = False
) -> tuple[bseq.InterestModel, bseq.Sequences]:
    """Return the model and the histories of a run or store, or the histories of a log given now.

    ``hides_user``: the key is for an id of the command line as well. Raises UsageError for a key without anything to
    hide, SchemaError if the log lacks what the model reads.
    """
    hide = pseudonymiser(key_file)
    if hide is not None and events is None and not hides_user:
        raise bseq.UsageError(
            "--pseudonymise hides the ids of --events, and there are none; a run or store keeps the ids it has: "
            "train with --pseudonymise"
        )
    require_source(reading, events is not None, "--events")
    if (place / "run.json").is_file():
        if events is None and "partitions" in bseq.Run(place).info:
            raise bseq.UsageError(f"{place} was trained on partitions; give the log: --events")
        model, log = bseq.InterestModel.from_run(place), bseq.Run(place).sequences()
    else:
        retriever = bseq.Retriever.open(place, "exact")
        model, log = retriever.model, retriever.histories
    if events is not None:
        read = read_log(events, reading, hide)
        log = bseq.Sequences.from_events(read, model.vocabulary)
    model.check_log(log)
    return model, log


def items_table(path: Path | None) -> pd.DataFrame | None:
    """Return the table of the option ``--items``, if it is given."""
    from bseq_plugin.commands import read_table

    return None if path is None else read_table(path)
