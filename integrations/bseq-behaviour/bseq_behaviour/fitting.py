"""The one training loop of this package: shuffled batches, a schedule, early stopping with the best weights put back.

Shape letters: N rows.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import bseq_plugin as bseq

LossOfRows = Callable[[int, np.ndarray], Tensor]


@dataclass(frozen=True)
class Plan:
    """How long is trained, and in which steps.

    Attributes:
        batch_rows: rows of a step, at most.
        seed: what the order of the rows depends on, with the epoch.
        patience: epochs without a better validation before training stops; None: all epochs are made.
        warm_up: share of all steps over which the learning rate rises in a line, to fall as half a cosine does; None:
            it stays as it is.

    Raises UsageError for a number that is too small.
    """

    epochs: int
    batch_rows: int
    seed: int = 0
    patience: int | None = None
    warm_up: float | None = None

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_rows < 1 or self.seed < 0:
            raise bseq.UsageError(
                f"epochs = {self.epochs}, rows of a batch = {self.batch_rows}, seed = {self.seed}; give 1 or more "
                "epochs and rows, and a seed of 0 or more"
            )


@dataclass(frozen=True)
class Best:
    """The epoch whose weights a module has after training, and its validation loss; without validation the last one."""

    epoch: int
    loss: float


def require_instants(train: Sequence[Any]) -> None:
    """Raise UsageError if there is no instant to learn from."""
    if not train:
        raise bseq.UsageError("there are 0 instants to learn from; give 1 or more")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw torch's random numbers from ``seed`` inside; the caller's generator goes on afterwards as if nothing was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def fit(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: LossOfRows,
    sizes: Sequence[int],
    plan: Plan,
    validation: Callable[[], float] | None = None,
) -> Best:
    """Lower a loss, and leave the module in evaluation mode with the weights of its best epoch.

    Args:
        loss: a scalar, of some rows of a group (see ``batches``).
        sizes: rows of each group that is learned from; one group or more.
        validation: what is asked after each epoch; the module is then in evaluation mode, without gradients. Without
            it the weights of the last epoch stay.

    Raises BseqError for a loss that is no number: there is nothing to go on from.
    """
    schedule = _schedule(optimizer, sizes, plan)
    best, state = Best(0, math.inf), copy.deepcopy(module.state_dict())
    for epoch in range(1, plan.epochs + 1):
        module.train()
        for group, rows in batches(sizes, plan.batch_rows, plan.seed, epoch):
            optimizer.zero_grad()
            value = loss(group, rows)
            _require_finite(value.item(), epoch)
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        module.eval()
        if validation is None:
            best, state = Best(epoch, math.nan), module.state_dict()
            continue
        with torch.no_grad():
            judged = validation()
        _require_finite(judged, epoch)
        if judged < best.loss:
            best, state = Best(epoch, judged), copy.deepcopy(module.state_dict())
        if plan.patience is not None and epoch - best.epoch >= plan.patience:
            break
    module.load_state_dict(state)
    return best


def batches(sizes: Sequence[int], batch_rows: int, seed: int, epoch: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (group, int64 rows of it), every row of every group once; a group is what can be read together, an instant.

    Batches of several groups come mixed. What comes when is a function of the arguments alone.
    """
    random = np.random.default_rng([seed, epoch])
    pieces = [(group, rows) for group, size in enumerate(sizes) for rows in parts(random.permutation(size), batch_rows)]
    # those of a single group are shuffled already
    for piece in random.permutation(len(pieces)) if len(sizes) > 1 else range(len(pieces)):
        yield pieces[piece]


def parts(rows_N: np.ndarray, batch_rows: int) -> list[np.ndarray]:
    """Cut rows into the fewest pieces of at most ``batch_rows``, as even as can be; one of no rows if there is none."""
    return np.array_split(rows_N, max(1, -(-len(rows_N) // batch_rows)))


def mean_loss(loss: Callable[[np.ndarray], Tensor], n_rows: int, batch_rows: int) -> float:
    """Return the mean of a loss over rows, a batch at a time, so that memory stays bounded."""
    pieces = parts(np.arange(n_rows), batch_rows)
    return sum(float(loss(rows)) * len(rows) for rows in pieces) / max(n_rows, 1)


def _schedule(optimizer: torch.optim.Optimizer, sizes: Sequence[int], plan: Plan) -> Any:
    n_steps = plan.epochs * sum(len(parts(np.arange(size), plan.batch_rows)) for size in sizes)
    rate = partial(_rate, n_steps=n_steps, warm_up=plan.warm_up)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, rate)


def _rate(step: int, n_steps: int, warm_up: float | None) -> float:
    """Share of the learning rate at a step."""
    if warm_up is None:
        return 1.0
    return min((step + 1) / max(1.0, warm_up * n_steps), 0.5 + 0.5 * math.cos(math.pi * step / n_steps))


def _require_finite(loss: float, epoch: int) -> None:
    if not math.isfinite(loss):
        raise bseq.BseqError(f"the loss is {loss} in epoch {epoch}; lower learning_rate")
