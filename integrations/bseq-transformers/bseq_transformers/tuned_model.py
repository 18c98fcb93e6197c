"""A tuned Transformer on disk: checkpoints while it is tuned, a model directory when it is done. No pickle anywhere.

FOLDER/checkpoint.safetensors   while tuning: what learns, the optimizer's moments, the step
FOLDER/config.json, model.safetensors, the tokenizer   in the form of save_pretrained, additions merged
FOLDER/projection.safetensors   "weight" [D, E] and "bias" [D]: from a vector to a row of the item table
FOLDER/tuning.json              the settings, and the sha256 of the run's model and of the weights it began with
FOLDER/adapters/                for LoRA: what was added, as peft reads it
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from bseq_plugin.errors import UsageError
from bseq_transformers.backbone import TOKENIZER_FILES, open_backbone, quiet

CHECKPOINT = "checkpoint.safetensors"
PROJECTION = "projection.safetensors"
TOLD = "tuning.json"
MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class Checkpoint:
    """Where a tuning of one meaning goes on; ``meaning`` is a sha256 of all that decides on a step."""

    def __init__(self, folder: Path, meaning: str) -> None:
        self.folder, self.meaning = folder, meaning
        self.path = folder / CHECKPOINT

    def restore(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """The step to go on from, 0 without a checkpoint; what learns in ``module`` and the moments are set.

        Raises UsageError if the folder has something else, or another tuning; nothing is changed then.
        """
        if not self.path.is_file():
            if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
                raise UsageError(f"{str(self.folder)!r} exists and has no unfinished tuning in it; give another folder")
            return 0
        try:
            with safe_open(self.path, "pt") as file:
                told = file.metadata() or {}
                values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
            meaning, step = told["meaning"], int(told["step"])
        except (SafetensorError, KeyError, ValueError) as error:
            raise UsageError(f"{str(self.path)!r} is damaged ({error}); remove it and begin anew") from None
        if meaning != self.meaning:
            raise UsageError(
                f"{str(self.folder)!r} was begun with another run, other items or other options; go on with the same, "
                "or give another folder"
            )
        learning = _learning(module)
        with torch.no_grad():
            for name, parameter in learning.items():
                parameter.copy_(values[name])
                if f"{name}/step" in values:
                    optimizer.state[parameter] = {what: values[f"{name}/{what}"].clone() for what in MOMENTS}
        return step

    def save(self, module: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        """One file, written aside and renamed. What can't be written raises OSError and leaves the old one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        values: dict[str, Tensor] = {}
        for name, parameter in _learning(module).items():
            values[name] = parameter.detach().contiguous()
            moments = optimizer.state.get(parameter, {})  # none for what no gradient has reached: BERT's pooler
            values |= {f"{name}/{what}": moment.contiguous() for what, moment in moments.items()}
        _save_aside(values, self.path, {"meaning": self.meaning, "step": str(step)})

    def remove(self) -> None:
        """It is done."""
        self.path.unlink(missing_ok=True)


def write_tuned(model: nn.Module, projection: nn.Linear, source: Path, folder: Path, told: dict[str, Any]) -> None:
    """See the module's docstring; ``source`` has the tokenizer. ``config.json`` comes last."""
    folder.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=folder, prefix=".", suffix=".tmp"))
    try:
        merged: Any = model
        with quiet():
            if hasattr(model, "merge_and_unload"):
                merged.save_pretrained(aside / "adapters")
                merged = copy.deepcopy(merged).merge_and_unload()
            merged.save_pretrained(aside)
        for name in (*TOKENIZER_FILES, "merges.txt", "vocab.json"):
            if (source / name).is_file():
                shutil.copyfile(source / name, aside / name)
        _save_aside(
            {"weight": projection.weight.detach().contiguous(), "bias": projection.bias.detach().contiguous()},
            aside / PROJECTION,
            None,
        )
        (aside / TOLD).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        open_backbone(str(aside))  # what would be refused later is refused now
        for path in sorted(aside.iterdir(), key=lambda path: path.name == "config.json"):
            if path.is_dir():
                shutil.rmtree(folder / path.name, ignore_errors=True)
            os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def read_projection(folder: Path) -> tuple[Tensor, Tensor]:
    """(weight [D, E], bias [D]) of a tuned model. Raises UsageError if it has none, or a damaged one."""
    path = folder / PROJECTION
    if not path.is_file():
        raise UsageError(
            f"{str(folder)!r} has no {PROJECTION}; tune it (python -m bseq_transformers tune), or leave projected out"
        )
    try:
        with safe_open(path, "pt") as file:
            return file.get_tensor("weight"), file.get_tensor("bias")
    except SafetensorError as error:
        raise UsageError(f"{str(path)!r} is damaged ({error}); tune anew") from None


def _learning(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: value for name, value in module.named_parameters() if value.requires_grad}


def _save_aside(values: dict[str, Tensor], path: Path, told: dict[str, str] | None) -> None:
    aside = path.with_name(f".{path.name}.tmp")
    try:
        save_file(values, aside, metadata=told)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
