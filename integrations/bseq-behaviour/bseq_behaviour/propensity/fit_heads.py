"""Heads trained on frozen vectors: one user vector, a small network for each task.

Shape letters: N rows (a user at an instant), D width, K tasks.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bseq_plugin as bseq
from bseq_behaviour.contract.answers import checked
from bseq_behaviour.contract.choice import HeadChoice, binary_head, load_weights
from bseq_behaviour.contract.heads import BinaryHead
from bseq_behaviour.fitting import Plan, fit, seeded
from bseq_behaviour.propensity.inputs import Scale

Weighting = Literal["equal", "uncertainty"]
BATCH_ROWS, MAX_EPOCHS, PATIENCE = 1024, 60, 8
HEADS_FILE = "heads.safetensors"


@dataclass(frozen=True)
class Rows:
    """What heads are trained or judged on.

    Attributes:
        inputs_ND: float32, NaN for a missing value.
        labels_NK: float32, 1 = yes, 0 = no, NaN = not asked.
    """

    inputs_ND: np.ndarray
    labels_NK: np.ndarray


@dataclass(frozen=True)
class FittedHeads:
    """A trained head with the scale of its inputs.

    Attributes:
        tasks: names, in the order of the answers.
        digest: of the model whose vectors it reads.
        inputs: which inputs it reads (``user_inputs``).
    """

    head: BinaryHead
    scale: Scale
    tasks: tuple[str, ...]
    digest: str
    inputs: str

    @torch.no_grad()
    def predict(self, inputs_ND: np.ndarray) -> np.ndarray:
        """float32 [N, K], the chance of a yes. Raises UsageError for another width, PluginError if the head gives
        anything else.
        """
        if inputs_ND.shape[1] != self.head.dim:
            raise bseq.UsageError(f"the heads read {self.head.dim} columns, these inputs have {inputs_ND.shape[1]}")
        answer = self.head(torch.from_numpy(self.scale(inputs_ND)))
        logits_NK = checked(self.head, answer, (len(inputs_ND), len(self.tasks)), finite=True)
        chances_NK: np.ndarray = torch.sigmoid(logits_NK).numpy()
        return chances_NK

    def save(self, folder: Path) -> None:
        """Write ``heads.safetensors`` into ``folder``, which is made if it is not there; whole or not at all."""
        scale = {"mean": torch.from_numpy(self.scale.mean_D), "deviation": torch.from_numpy(self.scale.deviation_D)}
        state = {f"head.{name}": value for name, value in self.head.state_dict().items()}
        told = {
            "head": self.head.name, "options": self.head.options.model_dump(mode="json"), "tasks": self.tasks,
            "model_digest": self.digest, "inputs": self.inputs, "dim": self.head.dim,
        }  # fmt: skip
        bseq.save_sealed(folder / HEADS_FILE, {**state, **scale}, {"heads": json.dumps(told)})

    @classmethod
    def load(cls, folder: Path, digest: str) -> FittedHeads:
        """Read what ``save`` wrote.

        Raises RunError if it is missing or damaged, or of another model than ``digest``; UsageError, RecipeError or
        PluginError if the plugin that gave the head is gone, has other options now, or can't make it.
        """
        tensors, metadata = bseq.load_sealed(folder / HEADS_FILE, "FittedHeads.save")
        if "heads" not in metadata:
            raise bseq.RunError(f"{folder / HEADS_FILE} is not a file that FittedHeads.save wrote; give another folder")
        told = json.loads(metadata["heads"])
        if told["model_digest"] != digest:
            raise bseq.RunError(
                f"the heads in {folder} read vectors of model {told['model_digest'][:12]}, this is model "
                f"{digest[:12]}: train them again"
            )
        head = binary_head(HeadChoice(told["head"], told["options"]), told["dim"], len(told["tasks"]))
        load_weights(head, {k.removeprefix("head."): v for k, v in tensors.items() if k.startswith("head.")})
        scale = Scale(tensors["mean"].numpy(), tensors["deviation"].numpy())
        return cls(head.eval(), scale, tuple(told["tasks"]), digest, told["inputs"])


class TaskWeights(nn.Module):
    """Weighs the losses of the tasks: alike, or by a learned uncertainty of each.

    With log variances s: ``sum(exp(-s) * loss + s / 2)`` (Kendall, Gal and Cipolla, CVPR 2018, for classification).
    """

    def __init__(self, n_tasks: int, weighting: Weighting) -> None:
        super().__init__()
        if weighting not in ("equal", "uncertainty"):
            raise bseq.UsageError(f"weighting = {weighting!r}; use 'equal' or 'uncertainty'")
        self.log_variance_K = nn.Parameter(torch.zeros(n_tasks)) if weighting == "uncertainty" else None

    def forward(self, losses_K: Tensor) -> Tensor:
        """A scalar."""
        if self.log_variance_K is None:
            return losses_K.sum()
        return (torch.exp(-self.log_variance_K) * losses_K + self.log_variance_K / 2).sum()


def task_losses(logits_NK: Tensor, labels_NK: Tensor) -> Tensor:
    """float [K], mean cross-entropy of the rows that were asked; 0 for a task that none was asked."""
    asked_NK = ~torch.isnan(labels_NK)
    losses_NK = F.binary_cross_entropy_with_logits(logits_NK, torch.nan_to_num(labels_NK), reduction="none")
    return torch.where(asked_NK, losses_NK, 0).sum(0) / asked_NK.sum(0).clamp(min=1)


def fit_heads(
    train: Rows,
    validation: Rows,
    tasks: tuple[str, ...],
    *,
    digest: str,
    inputs: str = "vector",
    head: str = "mlp",
    options: dict[str, Any] | None = None,
    weighting: Weighting = "equal",
    learning_rate: float = 3e-3,
    weight_decay: float = 1e-2,
    seed: int = 0,
) -> FittedHeads:
    """Train a head on frozen inputs, keeping the epoch with the least summed loss on ``validation``.

    Raises UsageError or RecipeError for an unknown head, option or weighting; PluginError for a head that gives
    nonsense; BseqError if the loss is no longer finite.
    """
    if train.labels_NK.shape[1] != len(tasks):
        raise bseq.UsageError(f"{len(tasks)} tasks, but labels of {train.labels_NK.shape[1]}; give one column a task")
    scale = Scale.of(train.inputs_ND)
    inputs_ND, labels_NK = _tensors(train, scale)
    held = _tensors(validation, scale)
    with seeded(seed):
        module = binary_head(HeadChoice(head, options or {}), train.inputs_ND.shape[1], len(tasks))
        weights = TaskWeights(len(tasks), weighting)
        optimizer = torch.optim.AdamW(
            [
                {"params": module.parameters(), "weight_decay": weight_decay},
                {"params": weights.parameters(), "weight_decay": 0.0},
            ],
            lr=learning_rate,
        )
        fit(
            module,
            optimizer,
            lambda _, rows: weights(_losses(module, inputs_ND[rows], labels_NK[rows])),
            [len(inputs_ND)],
            Plan(MAX_EPOCHS, BATCH_ROWS, seed, PATIENCE),
            lambda: float(_losses(module, *held).sum()),
        )
    return FittedHeads(module, scale, tasks, digest, inputs)


def _tensors(rows: Rows, scale: Scale) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(scale(rows.inputs_ND)), torch.from_numpy(rows.labels_NK.astype(np.float32))


def _losses(module: BinaryHead, inputs_ND: Tensor, labels_NK: Tensor) -> Tensor:
    return task_losses(checked(module, module(inputs_ND), tuple(labels_NK.shape)), labels_NK)
