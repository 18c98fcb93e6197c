"""The training loop: epochs, validation, checkpoints, export."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from bseq_plugin.data.batches import Batch
from bseq_plugin.data.prepare import PreparedLog
from bseq_plugin.data.training_data import TrainingData
from bseq_plugin.errors import BseqError
from bseq_plugin.model.interest_model import ITEM_WEIGHT, InterestModel
from bseq_plugin.model.task import SequenceInterestTask
from bseq_plugin.schema.recipe import Recipe
from bseq_plugin.training.checkpoint import Checkpoints
from bseq_plugin.training.distributed import World
from bseq_plugin.training.log import RunLog
from bseq_plugin.training.run import Run
from bseq_plugin.training.sharding import ShardedTask
from bseq_plugin.training.validation import validate

WARM_UP_STEPS = 30


def build_task(log: PreparedLog, device: str) -> SequenceInterestTask:
    """The training model of a prepared log."""
    n_event_types = len(log.vocabulary.event_types)
    return SequenceInterestTask(
        log.recipe, log.vocabulary.n_items, n_event_types, attributes=log.attributes, device=device
    )


@dataclass
class Progress:
    """Where a run stands after an epoch; saved with each checkpoint."""

    epoch: int = 0
    best_epoch: int = 0
    best_score: float = -1.0  # below any metric; JSON has no infinity
    best_metrics: dict[str, float] | None = None
    seconds: float = 0.0

    def stops(self, recipe: Recipe, has_validation: bool) -> bool:
        """True once all epochs are done, or ``patience`` of them brought nothing better."""
        waited = self.epoch - self.best_epoch
        last = min(recipe.epochs, recipe.stop_after or recipe.epochs)
        return self.epoch >= last or (has_validation and waited >= recipe.patience)


class Trainer:
    """Runs epochs until the recipe says stop, then exports the best one."""

    def __init__(
        self, log: PreparedLog, data: TrainingData, sharded: ShardedTask, run: Run, here: World, progress: bool
    ) -> None:
        self.log, self.recipe, self.data = log, log.recipe, data
        self.sharded, self.run, self.here, self.show = sharded, run, here, progress
        self.checkpoints = Checkpoints(run.path)
        self.pipeline = TrainPipelineSparseDist(sharded.model, sharded.optimizer, here.device)
        priors = log.item_priors
        self.item_priors_VP = None if priors is None else torch.from_numpy(priors)
        self.base_rates = [float(group["lr"]) for group in sharded.optimizer.param_groups]

    def fit(self) -> None:
        """Train, checkpoint each epoch, stop early, export."""
        state = self._resume()
        with RunLog(
            self.run.path,
            enabled=self.here.is_first,
            progress=self.show,
            epochs=self.recipe.epochs,
            resumed_after=state.epoch,
        ) as log:
            while not state.stops(self.recipe, self.log.validation is not None):
                self._epoch(state, log)
        if self.here.is_first:
            self._export(state)
        self.here.gather(None)

    def _resume(self) -> Progress:
        epochs = self.checkpoints.epochs()
        last = min(self.here.gather(epochs[-1] if epochs else 0))
        if last == 0:
            return Progress()
        return Progress(**self.checkpoints.load(self.sharded, last))

    def _epoch(self, state: Progress, log: RunLog) -> None:
        started = time.perf_counter()
        with log.epoch(state.epoch + 1, self.data.steps_per_epoch) as report:
            loss, n_targets, n_events = self._steps(state.epoch, report)
        seconds = time.perf_counter() - started
        loss_sum, targets, events = self.here.sum([loss * n_targets, n_targets, n_events])
        state.epoch += 1
        state.seconds += seconds
        line: dict[str, Any] = {
            "epoch": state.epoch,
            "loss": loss_sum / max(targets, 1.0),
            "seconds": seconds,
            "events_per_second": events / seconds,
        }
        self._judge(state, line)
        # The line first: a resumed run strikes lines beyond its checkpoint, but could not make up for a missing one.
        log.write(line, "(best)" if state.best_epoch == state.epoch and self.log.validation is not None else "")
        self.checkpoints.save(self.sharded, asdict(state), state.epoch, {state.best_epoch}, self.here)

    def _judge(self, state: Progress, line: dict[str, Any]) -> None:
        """Validate; without a validation set the newest epoch is the best."""
        if self.log.validation is None:
            state.best_epoch = state.epoch
            return
        self.sharded.model.eval()
        encoder = self.sharded.task.interest_encoder
        metrics = validate(
            encoder, self.log.validation, self.item_priors_VP, self.log.vocabulary.n_items, self.recipe, self.here
        )
        line.update(metrics)
        if metrics[self.recipe.validation_metric] > state.best_score:
            state.best_epoch, state.best_score = state.epoch, metrics[self.recipe.validation_metric]
            state.best_metrics = metrics

    def _steps(self, epoch: int, report: Any) -> tuple[float, float, float]:
        """One epoch of steps: (mean loss a target, targets, events) of this rank."""
        # dropout of an epoch depends on (seed, epoch, rank) alone, so that a resumed run repeats the uninterrupted one
        torch.manual_seed(hash((self.recipe.seed, epoch, self.here.rank)) & 0x7FFF_FFFF)
        self.sharded.model.train()
        self.pipeline.attach(self.sharded.model)
        counted: list[int] = []
        batches = self._counted(self.data.batches(epoch), counted)
        loss_sum, targets, step = 0.0, 0, 0
        while True:
            self._set_learning_rate(epoch * self.data.steps_per_epoch + step)
            try:
                outputs = self.pipeline.progress(batches)
            except StopIteration:
                break
            loss, n_targets = float(outputs["loss"]), int(outputs["n_targets"])
            if not math.isfinite(loss):
                raise BseqError(
                    f"the loss is {loss} in epoch {epoch + 1}, step {step + 1}; lower learning_rate or "
                    f"table_learning_rate. The last good checkpoint is kept in {self.checkpoints.folder}"
                )
            loss_sum, targets = loss_sum + loss * n_targets, targets + n_targets
            report(loss, counted[step])
            step += 1
        self.pipeline.detach()
        return loss_sum / max(targets, 1), float(targets), float(sum(counted))

    @staticmethod
    def _counted(batches: Iterator[Batch], counted: list[int]) -> Iterator[Batch]:
        """The pipeline reads ahead: events are counted where batches come from."""
        for batch in batches:
            counted.append(int(batch.features["event"].lengths().sum()))
            yield batch

    def _set_learning_rate(self, step: int) -> None:
        if self.recipe.schedule == "constant":
            return
        total = self.recipe.epochs * self.data.steps_per_epoch
        factor = min(1.0, (step + 1) / WARM_UP_STEPS) * 0.5 * (1.0 + math.cos(math.pi * step / total))
        for group, rate in zip(self.sharded.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * max(factor, 0.02)

    def _export(self, state: Progress) -> None:
        """The best epoch as a plain model, then mark the run complete."""
        plain = build_task(self.log, device="cpu")
        self.checkpoints.load_plain(plain, state.best_epoch)
        encoder = plain.interest_encoder
        weights = {k: v for k, v in encoder.state_dict().items() if not k.startswith("item_tower.")}
        weights[ITEM_WEIGHT] = encoder.item_tower.fold(weights[ITEM_WEIGHT])
        model = InterestModel.from_state(
            self.recipe, self.log.vocabulary, weights, self.item_priors_VP, self.log.trained_until_us
        )
        aside = self.run.path / ".model"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        model.save(aside)
        shutil.rmtree(self.run.path / "model", ignore_errors=True)
        aside.rename(self.run.path / "model")
        self.run.update(
            {
                **self.run.info,
                "status": "complete",
                "best_epoch": state.best_epoch,
                "epochs": state.epoch,
                "validation": state.best_metrics,
                "train_seconds": state.seconds,
                "world_size": self.here.size,
            }
        )
