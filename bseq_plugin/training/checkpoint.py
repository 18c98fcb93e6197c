"""Checkpoints that are there or not there, never half.

    RUN/checkpoints/epoch-0003/                 torch.distributed.checkpoint + state.json
    RUN/checkpoints/epoch-0003-step-00000120/   the same, 120 steps into the fourth epoch
    RUN/checkpoints/.epoch-0004                 being written; ignored, and removed by the next save

Any number of processes with any sharding loads what any other has saved. A checkpoint is for going on with training, by
whoever wrote it: torch's own reader unpickles its index. Models for exchange are safetensors (``InterestModel.save``).
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from bseq_plugin.distributed import World
from bseq_plugin.errors import RunError
from bseq_plugin.events.vocabulary import Vocabulary
from bseq_plugin.files import put_in_place
from bseq_plugin.model.learned import without_record
from bseq_plugin.recipe.merge import different_keys
from bseq_plugin.recipe.recipe import Recipe
from bseq_plugin.training.sharding import ShardedTask

NAME = re.compile(r"epoch-(\d{4,})(?:-step-(\d{8,}))?")
# Keys that say how long is learned, not what the numbers in a checkpoint mean.
FREE_KEYS = {"training": {"epochs", "stop_after"}, "split": {"every", "patience"}}


class Position(NamedTuple):
    """Complete epochs, and steps of the one after them."""

    epoch: int
    step: int = 0

    @property
    def name(self) -> str:
        """Return the name of the checkpoint's folder."""
        return f"epoch-{self.epoch:04d}" + (f"-step-{self.step:08d}" if self.step else "")

    def __str__(self) -> str:
        return f"epoch {self.epoch}" + (f" and {self.step} steps" if self.step else "")


def identity(recipe: Recipe, vocabulary: Vocabulary) -> dict[str, str]:
    """Return what a checkpoint must have in common with the run that loads it."""
    settings = {
        name: {key: value for key, value in section.items() if key not in FREE_KEYS.get(name, ())}
        for name, section in recipe.as_dict().items()
    }
    rows = pd.util.hash_array(vocabulary.item_ids).tobytes() + json.dumps(vocabulary.event_types).encode()
    return {
        "recipe": json.dumps(settings, sort_keys=True),
        "vocabulary": f"{vocabulary.n_items} items, sha256 {hashlib.sha256(rows).hexdigest()[:16]}",
    }


class Checkpoints:
    """The checkpoints of one run.

    Args:
        run: the run directory.
        identity: see ``identity``; a checkpoint of another recipe or vocabulary is refused.
    """

    def __init__(self, run: Path, identity: dict[str, str] | None = None) -> None:
        self.folder = run / "checkpoints"
        self.identity = identity

    def path(self, at: Position) -> Path:
        """Return where the checkpoint of a position stands."""
        return self.folder / at.name

    def positions(self) -> list[Position]:
        """Return the positions with a complete checkpoint, ascending."""
        names = [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []
        matches = [match for match in map(NAME.fullmatch, names) if match]
        return sorted(Position(int(match[1]), int(match[2] or 0)) for match in matches)

    def save(self, sharded: ShardedTask, state: dict[str, Any], at: Position, keep: set[Position], here: World) -> None:
        """Write the checkpoint of a position on all ranks, make it visible, then remove those not in ``keep``.

        Raises RunError on every rank if any of them can't write; what was there before is kept.
        """
        aside = self.folder / f".{at.name}"
        here.on_first(lambda: self._make_room(aside))
        what = f"the checkpoint of {at} can't be written; what was there before is kept"
        with _told_in_one_line(what):
            dcp.save(sharded.state(), checkpoint_id=str(aside))  # type: ignore[attr-defined]
        head = {"identity": self.identity, "world_size": here.size}
        random = [value.numpy().tobytes().hex() for value in here.gather(torch.get_rng_state())] if at.step else None

        def show() -> None:
            try:
                document = {**head, "random_states": random, "state": state}
                (aside / "state.json").write_text(json.dumps(document), encoding="utf-8")
                put_in_place(aside, self.path(at))  # a resumed run may have written this one before: the same
            except OSError as error:
                raise RunError(f"{what}: {error}") from error
            for old in set(self.positions()) - keep - {at}:
                shutil.rmtree(self.path(old))

        here.on_first(show)

    def _make_room(self, aside: Path) -> None:
        try:
            for leftover in self.folder.glob(".epoch-*"):
                shutil.rmtree(leftover)
            aside.mkdir(parents=True)
        except OSError as error:
            raise RunError(f"checkpoints can't be written to {self.folder}: {error}") from error

    def load(self, sharded: ShardedTask, at: Position, here: World) -> tuple[dict[str, Any], bool]:
        """Bring model and optimizers to a position; return what ``save`` got as ``state``, and whether torch's
        generator was brought there too: for a position within an epoch, saved by as many ranks.

        Raises RunError on every rank if the checkpoint is damaged or belongs to another recipe or vocabulary.
        """
        document = here.on_first(lambda: self._read(at))
        for optimizer in sharded.dense_optimizers:
            optimizer.init_state()  # without it the slots to load into do not exist yet
        values = sharded.state()
        with _told_in_one_line(f"{self.path(at)} is damaged; remove it to go on from the one before, if there is one"):
            dcp.load(values, checkpoint_id=str(self.path(at)))  # type: ignore[attr-defined]
        sharded.load(values)
        states = document["random_states"]
        restored = states is not None and document["world_size"] == here.size
        if restored:
            torch.set_rng_state(torch.frombuffer(bytearray.fromhex(states[here.rank]), dtype=torch.uint8))
        return document["state"], restored

    def load_weights(self, sharded: ShardedTask, at: Position, here: World) -> None:
        """Bring the model alone to a position. Raises as ``load``."""
        here.on_first(lambda: self._read(at))
        values = {"model": without_record(sharded.model.state_dict())}
        with _told_in_one_line(f"{self.path(at)} is damaged; remove it, and go on from the one before (--resume)"):
            dcp.load(values, checkpoint_id=str(self.path(at)))  # type: ignore[attr-defined]
        sharded.model.load_state_dict(values["model"])

    def _read(self, at: Position) -> dict[str, Any]:
        path = self.path(at)
        try:
            document: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
            saved = document["identity"]
        except (OSError, ValueError, KeyError) as error:
            raise RunError(
                f"{path}/state.json can't be read ({type(error).__name__}: {error}); remove {path} to go on from the "
                "checkpoint before, if there is one"
            ) from None
        for name, value in (self.identity or {}).items():
            if saved is not None and saved[name] != value:
                raise RunError(
                    f"{path} was saved with another {name} ({_difference(saved[name], value)}); resume with the same "
                    "settings and log, or start a new run"
                )
        return document

    def load_plain(self, model: nn.Module, at: Position, leave_out: str | None = None) -> None:
        """Bring an unsharded model on this process alone to a position; needs no process group.

        ``leave_out``: a key of the model's state that keeps its value.
        """
        state = without_record(model.state_dict())
        values = {"model": {name: value for name, value in state.items() if name != leave_out}}
        with warnings.catch_warnings():  # torch wonders whether a single process was meant; it was
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
            dcp.load(values, checkpoint_id=str(self.path(at)), no_dist=True)  # type: ignore[attr-defined]
        model.load_state_dict(values["model"], strict=leave_out is None)


def _difference(saved: str, wanted: str) -> str:
    """Return, in a few words, the settings that differ, or both texts."""
    try:
        old, new = json.loads(saved), json.loads(wanted)
    except ValueError:
        return f"{saved}; here: {wanted}"
    return f"different: {', '.join(different_keys(old, new))}"


@contextmanager
def _told_in_one_line(what: str) -> Iterator[None]:
    """Turn torch's CheckpointException into a line: it is no Exception, and prints the tracebacks of all ranks."""
    try:
        yield
    except CheckpointException as error:
        cause = next(iter(error.failures.values()))[0]
        first = next(iter(str(cause).splitlines()), "")
        raise RunError(f"{what}: {type(cause).__name__}: {first}") from error
