"""``train``: from a log to a run directory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from bseq_plugin.data.events import Events
from bseq_plugin.data.prepare import PreparedLog, prepare
from bseq_plugin.data.training_data import TrainingData
from bseq_plugin.errors import RunError
from bseq_plugin.schema.parts import SequenceLoss
from bseq_plugin.schema.recipe import Recipe
from bseq_plugin.training.distributed import World, world
from bseq_plugin.training.row_update import pooled_row_update
from bseq_plugin.training.run import Run
from bseq_plugin.training.sharding import check_device, shard
from bseq_plugin.training.trainer import Trainer, build_task


def train(
    events: Events,
    recipe: Recipe,
    out: str | Path,
    *,
    items: pd.DataFrame | None = None,
    resume: bool = False,
    progress: bool = True,
) -> Run:
    """Train ``recipe`` on ``events`` and leave a run at ``out``; under torchrun every rank calls it alike.

    Args:
        items: item attributes, if the recipe reads any; see ``prepare``.
        resume: go on after the last complete checkpoint of ``out`` (from the start if there is none yet).
        progress: progress bar and one line an epoch on stderr.

    Raises:
        RecipeError, SchemaError, UsageError: bad settings or data, before anything is written.
        RunError: ``out`` holds a run and ``resume`` is False, or a run of another recipe or log.
    """
    log = prepare(events, recipe, items)
    run = Run(Path(out))
    # built once here so that bad options and unknown names fail before anything is written
    torch.manual_seed(log.recipe.seed)
    task = build_task(log, device="meta")
    with world() as here:
        check_device(log.recipe, here.device)
        data = TrainingData(log.training, log.vocabulary, log.recipe, here.rank, here.size)
        _check_out(run, log, resume, here)
        if _is_complete(run):
            return run
        if (here.is_first and not resume) or (here.is_first and not (run.path / "run.json").is_file()):
            run.begin(log)
        here.gather(None)  # nobody goes on before the run directory stands
        _settle_machine_choices(task.objective.loss, log.recipe.dim, run, here)
        trainer = Trainer(log, data, shard(task, log.recipe, here), run, here, progress)
        with pooled_row_update():
            trainer.fit()
    return run


def _is_complete(run: Run) -> bool:
    return (run.path / "run.json").is_file() and run.info["status"] == "complete"


def _check_out(run: Run, log: PreparedLog, resume: bool, here: World) -> None:
    """Every rank raises what rank 0 found, so that none waits for the others."""
    problem = None
    if here.is_first and (run.path / "run.json").is_file():
        if not resume:
            problem = f"{run.path} already holds a run; give another --out, or go on with it (--resume)"
        elif run.recipe != log.recipe:
            changed = [k for k, v in log.recipe.model_dump().items() if v != run.recipe.model_dump()[k]]
            problem = (
                f"{run.path} was begun with another recipe (different: {', '.join(changed)}); use the same to resume"
            )
        elif not _same_log(run, log):
            problem = f"{run.path} was begun on another log (its events differ); resume with the same source"
        elif run.info.get("attributes_sha256") != (log.attributes.digest if log.attributes else None):
            problem = f"{run.path} was begun with another items table; resume with the same --items"
    elif here.is_first and run.path.exists() and not (resume and run.is_half_begun) and not _is_empty(run.path):
        problem = f"{run.path} is not empty and not a run; give another --out"
    problem = next((p for p in here.gather(problem) if p), None)
    if problem:
        raise RunError(problem)


def _settle_machine_choices(loss: SequenceLoss, dim: int, run: Run, here: World) -> None:
    """Rank 0 measures, or reads what the run was begun with; see ``SequenceLoss.machine_choices``."""
    choices = None
    if here.is_first:
        choices = run.info.get("machine_choices")
        if choices is None:
            choices = loss.machine_choices(dim)
            run.update({**run.info, "machine_choices": choices})
    choices = here.gather(choices)[0]
    loss.options = loss.options.model_copy(update=choices)


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _same_log(run: Run, log: PreparedLog) -> bool:
    if list(run.vocabulary().item_ids) != list(log.vocabulary.item_ids):
        return False
    begun = run.sequences()
    names = ("user_ids", "offsets", "items", "timestamps", "event_types")
    return all(np.array_equal(getattr(begun, name), getattr(log.sequences, name)) for name in names)
