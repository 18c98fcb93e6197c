"""Averaged weights: an exponential moving average of all parameters, as in Polyak and Juditsky (SIAM 1992) and
Tarvainen and Valpola (NIPS 2017, section 3), kept where the parameters lie, shard by shard.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed._shard.sharded_tensor.shard import Shard

UPDATES_AN_EPOCH = 64  # more often costs memory traffic and changes nothing: weights hardly move in between
ROWS = 1 << 18  # exchanged at a time, so that no second copy of a table is made


class WeightAverage:
    """Exponential moving average of a sharded model's weights; every rank averages what it holds.

    Args:
        model: its state dict must alias the weights, as TorchRec's and torch's do.
        half_life: epochs after which a weight's influence has halved.
        steps_per_epoch: steps of an epoch.
    """

    def __init__(self, model: nn.Module, half_life: float, steps_per_epoch: int) -> None:
        self._every = max(1, steps_per_epoch // UPDATES_AN_EPOCH)
        self._decay = 0.5 ** (self._every / (half_life * steps_per_epoch))
        self._live: list[Tensor] = []
        self._kept: list[Tensor] = []
        self._state = {name: self._copy(value) for name, value in model.state_dict().items() if _is_weight(value)}

    def state(self) -> dict[str, Any]:
        """The copies under the names of the model's state, for ``torch.distributed.checkpoint``."""
        return self._state

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After ``step`` steps of all epochs together (the first is 1). Early ones count for less: they are far off."""
        if step % self._every or not self._kept:  # a rank may hold nothing
            return
        n_updates = step // self._every
        decay = min(self._decay, (1 + n_updates) / (10 + n_updates))
        torch._foreach_lerp_(self._kept, self._live, 1.0 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the model's weights and the copies: then the model has the average, and the next time again not."""
        for live, kept in zip(self._live, self._kept, strict=True):
            for start in range(0, len(live) if live.ndim else 1, ROWS):
                part = slice(start, start + ROWS) if live.ndim else ...
                between = live[part].clone()
                live[part] = kept[part]
                kept[part] = between

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the average within, and goes on from where it was afterwards."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def _copy(self, value: Any) -> Any:
        if not isinstance(value, ShardedTensor):
            return self._kept_copy(value)
        shards = [Shard(self._kept_copy(shard.tensor), shard.metadata) for shard in value.local_shards()]
        return ShardedTensor._init_from_local_shards_and_global_metadata(
            shards, value.metadata(), process_group=value._process_group
        )

    def _kept_copy(self, live: Tensor) -> Tensor:
        self._live.append(live.detach())
        self._kept.append(live.detach().clone())
        return self._kept[-1]


def _is_weight(value: Any) -> bool:
    return isinstance(value, ShardedTensor) or (isinstance(value, Tensor) and value.is_floating_point())
