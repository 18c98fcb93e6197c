"""Checkpoints that are there or not there, never half.

    RUN/checkpoints/epoch-0003/        torch.distributed.checkpoint + state.json
    RUN/checkpoints/.epoch-0004        being written; ignored, and removed by the next save

A checkpoint is for going on with training, by whoever wrote it: torch's own reader unpickles its index. Models for
exchange are safetensors (``InterestModel.save``).
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import distributed as dist
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from bseq_plugin.errors import RunError
from bseq_plugin.training.distributed import World
from bseq_plugin.training.sharding import ShardedTask

PREFIX = "epoch-"


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, run: Path) -> None:
        self.folder = run / "checkpoints"

    def path(self, epoch: int) -> Path:
        """Where the checkpoint after ``epoch`` (1, 2, ...) stands."""
        return self.folder / f"{PREFIX}{epoch:04d}"

    def epochs(self) -> list[int]:
        """Epochs with a complete checkpoint, ascending."""
        found = self.folder.glob(f"{PREFIX}*") if self.folder.is_dir() else []
        return sorted(int(path.name.removeprefix(PREFIX)) for path in found)

    def save(self, sharded: ShardedTask, state: dict[str, Any], epoch: int, keep: set[int], here: World) -> None:
        """Write the checkpoint after ``epoch`` on all ranks, make it visible, then remove those not in ``keep``."""
        aside = self.folder / f".{PREFIX}{epoch:04d}"
        if here.is_first:
            for leftover in self.folder.glob(f".{PREFIX}*"):
                shutil.rmtree(leftover)
            aside.mkdir(parents=True)
        dist.barrier()
        with _told_in_one_line(f"the checkpoint of epoch {epoch} can't be written; what was there before is kept"):
            dcp.save(sharded.state(), checkpoint_id=str(aside))  # type: ignore[attr-defined]
        if here.is_first:
            _write_synced(aside / "state.json", json.dumps(state))
            if self.path(epoch).exists():  # a resumed run wrote this epoch before: the new one is the same
                shutil.rmtree(self.path(epoch))
            aside.rename(self.path(epoch))
            _sync(self.folder)
            for old in set(self.epochs()) - keep - {epoch}:
                shutil.rmtree(self.path(old))
        dist.barrier()

    def load(self, sharded: ShardedTask, epoch: int) -> dict[str, Any]:
        """Bring model and optimizers to the state after ``epoch``; gives what ``save`` got as ``state``."""
        for optimizer in sharded.dense_optimizers:
            optimizer.init_state()  # without it the slots to load into do not exist yet
        values = sharded.state()
        with _told_in_one_line(
            f"{self.path(epoch)} is damaged; remove it to go on from the one before, if there is one"
        ):
            dcp.load(values, checkpoint_id=str(self.path(epoch)))  # type: ignore[attr-defined]
        sharded.model.load_state_dict(values["model"])
        sharded.optimizer.load_state_dict(values["optimizer"])
        return self.state(epoch)

    def state(self, epoch: int) -> dict[str, Any]:
        """The ``state`` saved with ``epoch``."""
        found: dict[str, Any] = json.loads((self.path(epoch) / "state.json").read_text(encoding="utf-8"))
        return found

    def load_plain(self, model: Any, epoch: int) -> None:
        """Bring an unsharded model on this process alone to the state after ``epoch``; needs no process group."""
        values = {"model": model.state_dict()}
        with warnings.catch_warnings():  # torch wonders whether a single process was meant; it was
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
            dcp.load(values, checkpoint_id=str(self.path(epoch)), no_dist=True)  # type: ignore[attr-defined]
        model.load_state_dict(values["model"])


@contextmanager
def _told_in_one_line(what: str) -> Iterator[None]:
    """torch's CheckpointException is no Exception, and prints the tracebacks of all ranks."""
    try:
        yield
    except CheckpointException as error:
        cause = next(iter(error.failures.values()))[0]
        first = next(iter(str(cause).splitlines()), "")
        raise RunError(f"{what}: {type(cause).__name__}: {first}") from error


def _write_synced(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
