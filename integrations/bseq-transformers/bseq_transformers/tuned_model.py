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
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import bseq_plugin as bseq
from bseq_transformers.backbone import TOKENIZER_FILES, Backbone, open_backbone, quiet

CHECKPOINT = "checkpoint.safetensors"
PROJECTION = "projection.safetensors"
TOLD = "tuning.json"
MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def check_folder(folder: Path) -> None:
    """Raises UsageError if a tuning can neither begin nor go on in ``folder``; nothing is written."""
    if folder.exists() and not (folder / CHECKPOINT).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise bseq.UsageError(f"{str(folder)!r} exists and has no unfinished tuning in it; give another folder")
    parent = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise bseq.UsageError(f"{str(folder)!r} can't be written: {str(parent)!r} is no folder one may write to")


class Checkpoint:
    """Where a tuning of one meaning goes on; ``meaning`` is a sha256 of all that decides on a step."""

    def __init__(self, folder: Path, meaning: str) -> None:
        self.folder, self.meaning = folder, meaning
        self.path = folder / CHECKPOINT

    def restore(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """The step to go on from, 0 without a checkpoint; what learns in ``module`` and the moments are set.

        Raises UsageError if the folder has something else, another tuning, or can't be written; nothing is changed
        then.
        """
        check_folder(self.folder)
        if not self.path.is_file():
            return 0
        try:
            with safe_open(self.path, "pt") as file:
                told = file.metadata() or {}
                values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
            meaning, step = told["meaning"], int(told["step"])
        except (SafetensorError, KeyError, ValueError) as error:
            raise bseq.UsageError(f"{str(self.path)!r} is damaged ({error}); remove it and begin anew") from None
        if meaning != self.meaning:
            raise bseq.UsageError(
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


def read_projection(folder: Path, pooling: str, normalize: bool, max_tokens: int) -> tuple[Tensor, Tensor]:
    """(weight [D, E], bias [D]) of a tuned model, for vectors that are made as those it was learned on.

    Warns if ``max_tokens`` is not that of the tuning: longer texts have other vectors then, shorter ones the same.

    Raises UsageError if it has none or a damaged one, with another ``pooling``, and without ``normalize``.
    """
    path = folder / PROJECTION
    if not path.is_file():
        raise bseq.UsageError(f"{str(folder)!r} has no {PROJECTION}; tune it (bseq tune-text), or leave projected out")
    _check_vectors(folder, pooling, normalize, max_tokens)
    try:
        with safe_open(path, "pt") as file:
            return file.get_tensor("weight"), file.get_tensor("bias")
    except SafetensorError as error:
        raise bseq.UsageError(f"{str(path)!r} is damaged ({error}); tune anew") from None


def _check_vectors(folder: Path, pooling: str, normalize: bool, max_tokens: int) -> None:
    """See ``read_projection``."""
    path = folder / TOLD
    try:
        options = json.loads(path.read_text(encoding="utf-8"))["options"]
        tuned_pooling, tuned_tokens = str(options["pooling"]), int(options["max_tokens"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise bseq.UsageError(
            f"{str(path)!r}, which says what vectors {PROJECTION} is for, can't be read ({type(error).__name__}: "
            f"{error}); tune anew, or leave projected out"
        ) from None
    if not normalize:
        raise bseq.UsageError("normalize = False with projected = True: a projection is learned on vectors of length 1")
    if pooling != tuned_pooling:
        raise bseq.UsageError(
            f"pooling = {pooling!r}, and the projection of {str(folder)!r} was learned with {tuned_pooling!r}; "
            f"set pooling = {tuned_pooling!r}, or leave projected out"
        )
    tuned_tokens = min(tuned_tokens, Backbone(folder).max_tokens)
    if max_tokens != tuned_tokens:
        warnings.warn(
            f"max_tokens = {max_tokens}, and the projection of {str(folder)!r} was learned with {tuned_tokens}; longer "
            f"texts are read otherwise than they were: set max_tokens = {tuned_tokens}",
            stacklevel=2,
        )


def _learning(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: value for name, value in module.named_parameters() if value.requires_grad}


def _save_aside(values: dict[str, Tensor], path: Path, told: dict[str, str] | None) -> None:
    aside = path.with_name(f".{path.name}.tmp")
    try:
        save_file(values, aside, metadata=told)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
