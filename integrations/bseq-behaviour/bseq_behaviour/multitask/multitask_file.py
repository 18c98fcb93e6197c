"""A trained multi-task model as a file: objectives, heads and weights; ids are those of the model it began with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import bseq_plugin as bseq
from bseq_behaviour.contract.choice import HeadChoice
from bseq_behaviour.multitask.moments import Objectives
from bseq_behaviour.multitask.multitask import MultiTask
from bseq_behaviour.propensity.inputs import Scale
from bseq_behaviour.propensity.tasks import Counts, Task

WEIGHTS = "weights."  # before the names of the module's own


def save_multitask(task: MultiTask, path: Path) -> None:
    """Write one safetensors file, whole or not at all."""
    objectives = task.objectives
    told = {
        "model_digest": task.digest,
        "tasks": [[one.name, counts.event_type] for one, counts in objectives.tasks],
        "next_item": objectives.next_item,
        "next_item_days": objectives.next_item_days,
        "all_action_days": objectives.all_action_days,
        "heads": {name: [choice.name, dict(choice.options)] for name, choice in task.chosen.items()},
        "weighting": task.weighting,
        "importance": task.importance,
    }
    tensors = {f"{WEIGHTS}{name}": value for name, value in task.state_dict().items()}
    tensors |= {"mean": torch.from_numpy(task.scale.mean_D), "deviation": torch.from_numpy(task.scale.deviation_D)}
    for place, (_, counts) in enumerate(objectives.tasks):
        if counts.items_V is not None:
            tensors[f"counts.{place}"] = torch.from_numpy(counts.items_V)
    if objectives.category_V is not None:
        tensors["category_V"] = torch.from_numpy(objectives.category_V)
    bseq.save_sealed(path, tensors, {"multitask": json.dumps(told)})


def load_multitask(path: Path, model: bseq.InterestModel) -> MultiTask:
    """Read what ``save_multitask`` wrote. ``model``: the one that it began with.

    Raises RunError if it is missing, damaged, something else, or of another model; UsageError, RecipeError or
    PluginError if the plugin that gave a head is gone, has other options now, or can't make it.
    """
    tensors, metadata = bseq.load_sealed(path, "save_multitask")
    if "multitask" not in metadata:
        raise bseq.RunError(f"{str(path)!r} is not a file that save_multitask wrote; give another")
    told = json.loads(metadata["multitask"])
    if told["model_digest"] != model.digest:
        raise bseq.RunError(
            f"the multi-task model in {str(path)!r} began with model {told['model_digest'][:12]}, this is model "
            f"{model.digest[:12]}: train it again"
        )
    scale = Scale(tensors["mean"].numpy(), tensors["deviation"].numpy())
    heads = {name: HeadChoice(*choice) for name, choice in told["heads"].items()}
    task = MultiTask(model, _objectives(told, tensors), scale, heads, told["weighting"], told["importance"])
    state = {name.removeprefix(WEIGHTS): value for name, value in tensors.items() if name.startswith(WEIGHTS)}
    try:
        task.load_state_dict(state)
    except RuntimeError as error:
        raise bseq.RunError(f"the weights in {str(path)!r} do not fit their description: {error}") from None
    return task.eval()


def _objectives(told: dict[str, Any], tensors: dict[str, Tensor]) -> Objectives:
    def column(name: str) -> np.ndarray | None:
        return tensors[name].numpy() if name in tensors else None

    tasks = [
        (Task.parse(name), Counts(column(f"counts.{place}"), event_type))
        for place, (name, event_type) in enumerate(told["tasks"])
    ]
    return Objectives(
        tuple(tasks), told["next_item"], told["all_action_days"], column("category_V"), told["next_item_days"]
    )
