"""Several futures from one encoder, learned together: next item, all of a window, yes-or-no tasks, demand.

It begins with a trained ``InterestModel`` and goes on in one process, without sharding: the frozen-vector protocol with
the encoder no longer frozen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

import bseq_plugin as bseq
from bseq_behaviour.fitting import BestWeights, require_finite
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
    if epochs < 1 or batch_users < 1 or not train:
        raise bseq.UsageError(
            f"epochs = {epochs}, batch_users = {batch_users}, {len(train)} instants; give 1 or more of each"
        )
    scale = Scale.of(np.concatenate([part.context_BX for part in train]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        task = MultiTask(model, objectives, scale, heads, weighting, importance)
        optimizer = torch.optim.Adam(
            [
                {"params": list(task.encoder.parameters()), "lr": learning_rate},
                {"params": [p for n, p in task.named_parameters() if not n.startswith("encoder.")], "lr": head_rate},
            ]
        )
        best = BestWeights(task)
        for epoch in range(1, epochs + 1):
            task.train()
            for part in _batches(train, batch_users, np.random.default_rng([seed, epoch])):
                optimizer.zero_grad()
                loss = task.total(part)
                require_finite(loss.item(), epoch)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            best.see(_judged(task, validation, batch_users))
    best.restore()
    task.eval()
    return MultiTaskFit(task, best.epoch, best.loss)


def _batches(train: list[Moment], batch_users: int, random: np.random.Generator) -> Iterator[Moment]:
    """Every user of every instant once, a batch at one instant."""
    pieces = []
    for place, part in enumerate(train):
        order = random.permutation(part.histories.n_users)
        pieces += [(place, users) for users in np.array_split(order, max(1, -(-len(order) // batch_users)))]
    for choice in random.permutation(len(pieces)):
        place, users = pieces[choice]
        yield train[place].take(users)


@torch.no_grad()
def _judged(task: MultiTask, validation: Moment, batch_users: int) -> float:
    """The summed loss of all users, by importance, a batch at a time, so that memory stays bounded."""
    task.eval()
    n_users = validation.histories.n_users
    parts = np.array_split(np.arange(n_users), max(1, -(-n_users // batch_users)))
    losses = [float((task.losses(validation.take(users)) * task.importance_O).sum()) for users in parts]
    return sum(loss * len(users) for loss, users in zip(losses, parts, strict=True)) / max(n_users, 1)
