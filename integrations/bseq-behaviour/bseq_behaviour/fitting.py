"""The weights of the best epoch, whatever is trained."""

from __future__ import annotations

import copy
import math
from typing import Any

from torch import nn

import bseq_plugin as bseq


class BestWeights:
    """Keeps a copy of a module's weights as they were when the loss was least.

    Attributes:
        epoch: when that was, 0 before the first.
        loss: what it was then.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.epoch, self.loss = 0, math.inf
        self._state: dict[str, Any] = copy.deepcopy(module.state_dict())
        self._seen = 0

    def see(self, loss: float) -> None:
        """After each epoch. Raises BseqError for a loss that is no number: there is nothing to go on from."""
        self._seen += 1
        require_finite(loss, self._seen)
        if loss < self.loss:
            self.epoch, self.loss, self._state = self._seen, loss, copy.deepcopy(self.module.state_dict())

    @property
    def waited(self) -> int:
        """Epochs since the best one."""
        return self._seen - self.epoch

    def restore(self) -> None:
        """Give the module these weights."""
        self.module.load_state_dict(self._state)


def require_finite(loss: float, epoch: int) -> None:
    """Raises BseqError for a loss that is no number."""
    if not math.isfinite(loss):
        raise bseq.BseqError(f"the loss is {loss} in epoch {epoch}; lower learning_rate")
