"""Several futures from one encoder, learned together: next item, all of a window, yes-or-no tasks, demand.

It begins with a trained ``InterestModel`` and goes on in one process, without sharding: the frozen-vector protocol with
the encoder no longer frozen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

import bseq_plugin as bseq
from bseq_behaviour.fitting import Plan, fit, mean_loss, require_instants, seeded
from bseq_behaviour.multitask.moments import Moment, Objectives
from bseq_behaviour.multitask.multitask import Heads, MultiTask
from bseq_behaviour.propensity.fit_heads import Weighting
from bseq_behaviour.propensity.inputs import Scale


@dataclass(frozen=True)
class MultiTaskFit:
    """A trained model, the epoch that was kept, and its summed loss on the validation instant."""

    model: MultiTask
    epoch: int
    loss: float

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of the objectives."""
        names: tuple[str, ...] = self.model.objectives.names
        return names


def fit_multitask(
    model: bseq.InterestModel,
    train: list[Moment],
    validation: Moment,
    objectives: Objectives,
    *,
    heads: Heads | None = None,
    weighting: Weighting = "equal",
    importance: Mapping[str, float] | None = None,
    epochs: int = 6,
    batch_users: int = 256,
    learning_rate: float = 1e-3,
    head_rate: float = 5e-3,
    seed: int = 0,
) -> MultiTaskFit:
    """Train all objectives together, keeping the epoch with the least summed loss on the validation instant.

    Args:
        heads: what answers, by objective; see ``MultiTask``.
        importance: of each objective's loss, by name, whatever ``weighting`` does beside; 1 if not named.
        learning_rate: of the encoder, which has been trained before.
        head_rate: of all that is new.

    Raises:
        UsageError, RecipeError: nothing to learn, an unknown or unused head, an unknown option, weighting or objective,
            epochs below 1.
        PluginError: a head gives nonsense.
        BseqError: the loss is no longer finite.
    """
    plan = Plan(epochs, batch_users, seed)
    require_instants(train)
    scale = Scale.of(np.concatenate([part.context_BX for part in train]))
    with seeded(seed):
        task = MultiTask(model, objectives, scale, heads, weighting, importance)
        optimizer = torch.optim.Adam(
            [
                {"params": list(task.encoder.parameters()), "lr": learning_rate},
                {"params": [p for n, p in task.named_parameters() if not n.startswith("encoder.")], "lr": head_rate},
            ]
        )
        best = fit(
            task,
            optimizer,
            lambda instant, users: task.total(train[instant].take(users)),
            [part.histories.n_users for part in train],
            plan,
            lambda: _judged(task, validation, batch_users),
        )
    return MultiTaskFit(task, best.epoch, best.loss)


def _judged(task: MultiTask, validation: Moment, batch_users: int) -> float:
    """Return the summed loss of all users of an instant, by importance."""
    return mean_loss(
        lambda users: (task.losses(validation.take(users)) * task.importance_O).sum(),
        validation.histories.n_users,
        batch_users,
    )
