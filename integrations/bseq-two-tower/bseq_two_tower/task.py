"""The train task and its batch, for TorchRec's pipelines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torchrec import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from bseq_two_tower.losses import CandidateLoss
from bseq_two_tower.model import InterestTwoTower


@dataclass
class TwoTowerBatch(Pipelineable):
    """What a step reads. Each goes to its look-up as it is: rebuilding one would stop the pipelining.

    Attributes:
        history: B rows.
        candidates: B rows, or B * K: those of a user one after the other.
        labels: float32 [B] or [B, K], 0 or 1: was it chosen; see the losses.
        query_features: B rows of the host's query features that are kept; None if none is.
        log_q: float32 [B], see ``InBatchSoftmax``.
    """

    history: KeyedJaggedTensor
    candidates: KeyedJaggedTensor
    labels: Tensor
    query_features: KeyedJaggedTensor | None = None
    log_q: Tensor | None = None

    def to(self, device: torch.device, non_blocking: bool = False) -> TwoTowerBatch:
        """The batch on another device."""
        return self._each(lambda value: value.to(device=device, non_blocking=non_blocking))

    def record_stream(self, stream: torch.Stream) -> None:
        """Tell the allocator of the stream that reads it."""
        for field in fields(self):
            if (value := getattr(self, field.name)) is not None:
                value.record_stream(stream)

    def pin_memory(self) -> TwoTowerBatch:
        """The batch in pinned memory."""
        return self._each(lambda value: value.pin_memory())

    def _each(self, change: Callable[[Any], Any]) -> TwoTowerBatch:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return TwoTowerBatch(**{name: None if value is None else change(value) for name, value in values.items()})


class InterestTwoTowerTrain(nn.Module):
    """``TwoTowerBatch -> (loss, (loss, logits, labels))``, TorchRec's convention for a train task.

    Args:
        two_tower: what ``bseq.attach`` gave.
        loss: ``CandidateLoss()``, the default, or ``InBatchSoftmax()``, or a module of your own for the same arguments.
    """

    def __init__(self, two_tower: InterestTwoTower, loss: nn.Module | None = None) -> None:
        super().__init__()
        self.two_tower = two_tower
        self.loss_fn = CandidateLoss() if loss is None else loss

    def forward(self, batch: TwoTowerBatch) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Return the loss, and what it was made of."""
        context = (batch.query_features,) if self.two_tower.query_names else ()
        query, candidate = self.two_tower(batch.history, batch.candidates, *context)
        loss, logits, labels = self.loss_fn(query, candidate, batch)
        return loss, (loss.detach(), logits.detach(), labels.detach())
