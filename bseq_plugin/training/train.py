"""``train``: from a log to a run directory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import torch
from torch import distributed as dist

from bseq_plugin.data.partitions import PartitionedSequences
from bseq_plugin.data.prepare import PreparedLog, count_partitions, prepare, prepare_partitions, resolved
from bseq_plugin.data.splits import training_histories
from bseq_plugin.data.streams import StreamedData, check_streams
from bseq_plugin.data.training_data import TrainingData
from bseq_plugin.distributed import World, world
from bseq_plugin.errors import RunError, UsageError
from bseq_plugin.events.events import Events
from bseq_plugin.matmul import Matmul
from bseq_plugin.model.run import Run
from bseq_plugin.model.task import SequenceInterestTask
from bseq_plugin.recipe.merge import different_keys
from bseq_plugin.recipe.recipe import Recipe
from bseq_plugin.training.plan import Sharding, check_device, sharding_types, table_names
from bseq_plugin.training.row_update import pooled_row_update
from bseq_plugin.training.sharding import shard
from bseq_plugin.training.trainer import Trainer, build_task
from bseq_plugin.training.warm_start import WarmStart


def train(
    events: Events | PartitionedSequences,
    recipe: Recipe,
    out: str | Path,
    *,
    items: pd.DataFrame | None = None,
    resume: bool = False,
    progress: bool = True,
    checkpoint_steps: int | None = None,
    warm_start: str | Path | None = None,
    sharding: Sharding = "auto",
    matmul: Matmul = "auto",
    fast_row_update: bool = True,
) -> Run:
    """Train ``recipe`` on ``events`` and leave a run at ``out``; under torchrun every rank calls it alike.

    Args:
        events: a log in memory, or partitions of one (``bseq sequences``) that are read as they are trained on.
        items: what is known of the items, if the recipe reads any of it; see ``prepare``.
        resume: go on after the last complete checkpoint of ``out`` (from the start if there is none yet).
        progress: progress bar and one line an epoch on stderr.
        checkpoint_steps: also write a checkpoint after so many steps within an epoch; default: after each epoch.
        warm_start: a finished run to begin with: its items keep their rows by id, new ones begin at the mean.
        sharding: how tables lie on the processes, for all of them or by table: "auto", "row_wise", "table_wise" or
            "column_wise". It changes nothing that is learned, and may be another one when a run is resumed.
        matmul: the type of the factors of large products in training: "float32", "bfloat16" (their sums are float32),
            or "auto", what measures faster here. It is kept in the run: a resumed one goes on with what it began with.
        fast_row_update: while this call trains, row-wise Adagrad on a CPU is computed by fbgemm's pooled kernel. It
            stands in for fbgemm's own in the whole process until the call ends; False leaves fbgemm as it is.

    Raises:
        RecipeError, SchemaError, UsageError: bad settings or data, before anything is written.
        RunError: ``out`` holds a run and ``resume`` is False, or a run of another recipe or log; another process died.
    """
    if matmul not in get_args(Matmul):
        raise UsageError(f"matmul = {matmul!r}; use one of {', '.join(get_args(Matmul))}")
    if checkpoint_steps is not None and checkpoint_steps < 1:
        raise UsageError(f"checkpoint_steps = {checkpoint_steps}; give 1 or more")
    run = Run(Path(out))
    with world() as here:
        if isinstance(events, Events):
            log = _prepared_on_all(here, recipe, lambda: prepare(events, recipe, items, progress and here.is_first))
        else:
            log = _prepared_partitions(events, recipe, items, here, progress)
        # built before anything is written, so that bad options and unknown names fail first
        task = here.on_all(lambda: _checked_task(log, sharding, here))
        data = here.on_all(lambda: _batches(log, here))
        warm = None if warm_start is None else here.on_all(lambda: WarmStart.open(warm_start, log))
        here.on_first(lambda: _check_out(run, log, resume))
        if here.on_first(lambda: _is_complete(run)):
            return run
        here.on_first(lambda: _begin(run, log, warm_start))  # nobody goes on before the run directory stands
        _settle_machine_choices(task, run, matmul, here)
        sharded = shard(task, log.recipe.training, sharding, here)
        if warm is not None:  # a checkpoint of the run itself, if there is one, is loaded over it
            here.on_all(lambda: warm.apply(sharded, log.vocabulary))
        trainer = Trainer(log, data, sharded, run, here, progress, checkpoint_steps)
        with pooled_row_update() if fast_row_update else nullcontext():
            trainer.fit()
    return run


def _prepared_partitions(
    log: PartitionedSequences, recipe: Recipe, items: pd.DataFrame | None, here: World, progress: bool
) -> PreparedLog:
    """Prepare partitions: every rank counts its own. Collective."""

    def count() -> tuple[Recipe, np.ndarray, int]:
        check_streams(len(log.partitions), here.size, recipe)
        ready = resolved(log, recipe)
        return ready, *count_partitions(log, ready, list(range(here.rank, len(log.partitions), here.size)))

    ready, counts, newest_us = here.on_all(count)
    total = torch.from_numpy(counts).to(here.device)
    dist.all_reduce(total)
    newest_us = max(here.gather(newest_us))
    counts = total.cpu().numpy()
    shown = progress and here.is_first
    return _prepared_on_all(here, recipe, lambda: prepare_partitions(log, ready, counts, newest_us, items, shown))


def _prepared_on_all(here: World, recipe: Recipe, work: Callable[[], PreparedLog]) -> PreparedLog:
    """Do ``work`` on every rank, once on each. Collective.

    With item encoders rank 0 goes ahead: it fills their caches, from which the others then read.
    """
    ahead: list[PreparedLog] = []
    if recipe.items.encoders and here.size > 1:
        here.on_first(lambda: ahead.append(work()))
    return here.on_all(lambda: ahead[0] if ahead else work())


def _checked_task(log: PreparedLog, sharding: Sharding, here: World) -> SequenceInterestTask:
    recipe = log.recipe
    check_device(sharding, recipe.training.table, recipe.vectors.table_dim, here.device, here.size)
    torch.manual_seed(recipe.training.seed)
    task = build_task(log, device="meta")
    sharding_types(sharding, table_names(task))
    return task


def _batches(log: PreparedLog, here: World) -> TrainingData:
    if log.partitions is None:
        return TrainingData(log.training, log.vocabulary, log.recipe, here.rank, here.size)
    training = partial(training_histories, split=log.recipe.split)
    return StreamedData(log.partitions, log.vocabulary, log.recipe, training, here.gather, here.rank, here.size)


def _begin(run: Run, log: PreparedLog, warm_start: str | Path | None) -> None:
    if not (run.path / "run.json").is_file():
        run.begin(log, warm_start)


def _settle_machine_choices(task: SequenceInterestTask, run: Run, matmul: Matmul, here: World) -> None:
    """Rank 0 measures, or reads what the run was begun with; see ``MachineChoices``."""

    def choose() -> dict[str, dict[str, Any]]:
        choices: dict[str, dict[str, Any]] | None = run.info.get("machine_choices")
        if choices is not None:
            return choices
        choices = task.machine_choices()
        if matmul != "auto":
            choices = {name: {**chosen, "matmul": matmul} for name, chosen in choices.items()}
        run.update({**run.info, "machine_choices": choices})
        return choices

    task.settle(here.on_first(choose))


def _is_complete(run: Run) -> bool:
    return (run.path / "run.json").is_file() and run.info["status"] == "complete"


def _check_out(run: Run, log: PreparedLog, resume: bool) -> None:
    if not (run.path / "run.json").is_file():
        if run.path.exists() and not (resume and run.is_half_begun) and not _is_empty(run.path):
            raise RunError(f"{run.path} is not empty and not a run; give another --out")
        return
    if not resume:
        raise RunError(f"{run.path} already holds a run; give another --out, or go on with it (--resume)")
    changed = different_keys(run.recipe.as_dict(), log.recipe.as_dict())
    if changed:
        raise RunError(
            f"{run.path} was begun with another recipe (different: {', '.join(changed)}); use the same to resume"
        )
    if log.partitions is not None:
        if run.info.get("log_sha256") != log.partitions.digest:
            raise RunError(f"{run.path} was begun on another log; resume with the same partitions")
    elif not _same_log(run, log):
        raise RunError(f"{run.path} was begun on another log (its events differ); resume with the same source")
    if run.info.get("attributes_sha256") != (log.attributes.digest if log.attributes else None):
        raise RunError(f"{run.path} was begun with another items table; resume with the same --items")
    if run.info.get("item_vectors_sha256") != (log.item_vectors.digest if log.item_vectors else None):
        raise RunError(
            f"{run.path} was begun with other vectors of its items: resume with the same --items, and the same weights "
            "of the item encoders"
        )


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _same_log(run: Run, log: PreparedLog) -> bool:
    if list(run.vocabulary().item_ids) != list(log.vocabulary.item_ids):
        return False
    begun = run.sequences()
    names = ("user_ids", "offsets", "items", "timestamps", "event_types", "session_ids")
    return all(np.array_equal(getattr(begun, name), getattr(log.sequences, name)) for name in names) and _same_values(
        begun.values, log.sequences.values
    )


def _same_values(first: np.ndarray | None, second: np.ndarray | None) -> bool:
    """Return whether two values are equal; one that is missing in both is the same one."""
    if first is None or second is None:
        return first is second
    return np.array_equal(first, second, equal_nan=True)
