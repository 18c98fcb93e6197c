"""The training loop: epochs, validation, checkpoints."""

from __future__ import annotations

import math
import time
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from bseq_plugin.data.prepare import PreparedLog
from bseq_plugin.data.training_data import TrainingData
from bseq_plugin.distributed import World
from bseq_plugin.errors import BseqError
from bseq_plugin.model.run import Run
from bseq_plugin.model.task import SequenceInterestTask
from bseq_plugin.recipe.recipe import Recipe
from bseq_plugin.training.checkpoint import Checkpoints, Position, identity
from bseq_plugin.training.export import export_interests, export_model
from bseq_plugin.training.log import Report, RunLog
from bseq_plugin.training.pipeline import EpochPipeline
from bseq_plugin.training.sharding import ShardedTask
from bseq_plugin.training.validation import validate

WARM_UP_STEPS = 30


def build_task(log: PreparedLog, device: str) -> SequenceInterestTask:
    """Return the training model of a prepared log."""
    n_event_types = len(log.vocabulary.event_types)
    return SequenceInterestTask(
        log.recipe,
        log.vocabulary.n_items,
        n_event_types,
        attributes=log.attributes,
        item_vectors=log.item_vectors,
        device=device,
    )


@dataclass
class Progress:
    """Where a run stands; saved with each checkpoint.

    ``epoch`` counts complete epochs and ``step`` the steps of the next one, whose sums over all ranks are ``sums``:
    (loss x targets, targets, events, seconds).
    """

    epoch: int = 0
    best_epoch: int = 0
    best_score: float = -1.0  # below any metric; JSON has no infinity
    best_metrics: dict[str, float] | None = None
    seconds: float = 0.0
    step: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0] * 4)

    @property
    def position(self) -> Position:
        """Return the position of the checkpoint that holds this."""
        return Position(self.epoch, self.step)

    def stops(self, recipe: Recipe) -> bool:
        """Return whether all epochs are done, or ``patience`` of them brought nothing better."""
        waited, split = self.epoch - self.best_epoch, recipe.split
        return self.epoch >= recipe.training.last_epoch or (split.kind != "none" and waited >= split.patience)


class Trainer:
    """Runs epochs until the recipe says stop, then exports the best one."""

    def __init__(
        self,
        log: PreparedLog,
        data: TrainingData,
        sharded: ShardedTask,
        run: Run,
        here: World,
        progress: bool,
        checkpoint_steps: int | None = None,
    ) -> None:
        self.log, self.recipe, self.data = log, log.recipe, data
        self.sharded, self.run, self.here, self.show = sharded, run, here, progress
        self.checkpoint_steps = checkpoint_steps
        self.checkpoints = Checkpoints(run.path, identity(log.recipe, log.vocabulary))
        self.pipeline = EpochPipeline(sharded, here)
        priors = log.item_priors
        self.item_priors_VP = None if priors is None else torch.from_numpy(priors)
        self.base_rates = [float(group["lr"]) for group in sharded.optimizer.param_groups]
        self.state = Progress()
        self._generator_restored = False

    def fit(self) -> None:
        """Train, checkpoint each epoch (and within, if asked to), stop early, export the model and the interests."""
        self._resume()
        state = self.state
        epochs, first = self.recipe.training.epochs, self.here.is_first
        log = RunLog(self.run.path, enabled=first, progress=self.show, epochs=epochs, resumed_after=state.epoch)
        with closing(log):
            while not state.stops(self.recipe):
                self._epoch(state, log)
            self._export(Position(state.best_epoch), log)
        self.here.on_first(lambda: self._complete(state))

    def _export(self, best: Position, log: RunLog) -> None:
        if best != self.state.position:
            self.checkpoints.load_weights(self.sharded, best, self.here)
        export_model(self.log, self.sharded, self.checkpoints, best, self.run, self.here)
        # rows of items with vectors are completed after training: publishing then reads histories with them
        if self.log.partitions is not None and self.log.item_vectors is None:
            with log.counting("interests of users", self.log.partitions.n_users // self.here.size) as count:
                encoder = self.sharded.task.interest_encoder
                export_interests(self.log, self.log.partitions, encoder, self.run, self.here, count)

    def _resume(self) -> None:
        positions = self.here.on_first(self.checkpoints.positions)
        if positions:
            state, self._generator_restored = self.checkpoints.load(self.sharded, positions[-1], self.here)
            self.state = Progress(**state)

    def _epoch(self, state: Progress, log: RunLog) -> None:
        with log.epoch(state.epoch + 1, self.data.steps_per_epoch, state.step) as report:
            self._steps(state.epoch, report)
        loss, targets, events, seconds = state.sums
        state.epoch, state.step, state.sums = state.epoch + 1, 0, [0.0] * 4
        state.seconds += seconds
        line: dict[str, Any] = {
            "epoch": state.epoch,
            "loss": loss / max(targets, 1.0),
            "seconds": seconds,
            "events_per_second": events / seconds,
        }
        self._judge(state, line)
        # The line first: a resumed run strikes lines beyond its checkpoint, but could not make up for a missing one.
        log.write(line, "(best)" if state.best_epoch == state.epoch and self.log.validation is not None else "")
        self._save()

    def _save(self) -> None:
        state = self.state
        keep = {Position(state.best_epoch)}
        self.checkpoints.save(self.sharded, asdict(state), state.position, keep, self.here)

    def _judge(self, state: Progress, line: dict[str, Any]) -> None:
        """Validate; without a validation set the newest epoch is the best."""
        split = self.recipe.split
        if self.log.validation is None or split.kind == "none":
            state.best_epoch = state.epoch
            return
        if state.epoch % split.every and not state.stops(self.recipe):  # no epoch goes unseen
            return
        self.sharded.model.eval()
        encoder = self.sharded.task.interest_encoder
        n_items, priors_VP = self.log.vocabulary.n_items, self.item_priors_VP
        metrics = validate(encoder, self.log.validation, priors_VP, n_items, self.recipe, split, self.here)
        line.update(metrics)
        if metrics[split.metric] > state.best_score:
            state.best_epoch, state.best_score = state.epoch, metrics[split.metric]
            state.best_metrics = metrics

    def _steps(self, epoch: int, report: Report) -> None:
        """Take the steps of an epoch that are left, added up in ``self.state.sums``."""
        state, saved_at = self.state, self.state.step
        if not self._generator_restored:
            # Dropout of an epoch depends on (seed, epoch, rank) alone, so that a resumed run repeats the uninterrupted
            # one. A checkpoint in the middle of an epoch has the generators' states, for as many ranks.
            place = (epoch, self.here.rank) if saved_at == 0 else (epoch, self.here.rank, saved_at)
            torch.manual_seed(hash((self.recipe.training.seed, *place)) & 0x7FFF_FFFF)
        self._generator_restored = False
        self.sharded.model.train()
        first = epoch * self.data.steps_per_epoch + saved_at
        batches = self.data.batches(epoch, saved_at)
        own, started = [0.0, 0.0, 0.0], time.perf_counter()
        for outputs, n_events in self.pipeline.outputs(batches, lambda place: self._set_learning_rate(first + place)):
            loss, n_targets = float(outputs["loss"]), float(outputs["n_targets"])
            self._require_finite(loss, epoch, state.step)
            own = [own[0] + loss * n_targets, own[1] + n_targets, own[2] + n_events]
            report(loss, n_events)
            state.step += 1
            if self.checkpoint_steps and state.step - saved_at >= self.checkpoint_steps:
                self._add(own, started)
                self._save()
                own, started, saved_at = [0.0, 0.0, 0.0], time.perf_counter(), state.step
        self._add(own, started)

    def _add(self, own: list[float], started: float) -> None:
        """Add this rank's sums to those of all ranks; a resumed run adds the same numbers in the same order."""
        totals = [*self.here.sum(own), time.perf_counter() - started]
        self.state.sums = [old + new for old, new in zip(self.state.sums, totals, strict=True)]

    def _require_finite(self, loss: float, epoch: int, step: int) -> None:
        if not math.isfinite(loss):
            raise BseqError(
                f"the loss is {loss} in epoch {epoch + 1}, step {step + 1}; lower training.dense.rate "
                f"or training.table.rate. The last good checkpoint is kept in {self.checkpoints.folder}"
            )

    def _set_learning_rate(self, step: int) -> None:
        if self.recipe.training.schedule == "constant":
            return
        total = self.recipe.training.epochs * self.data.steps_per_epoch
        factor = min(1.0, (step + 1) / WARM_UP_STEPS) * 0.5 * (1.0 + math.cos(math.pi * step / total))
        for group, rate in zip(self.sharded.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * max(factor, 0.02)

    def _complete(self, state: Progress) -> None:
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
