"""The train task and its batch, for TorchRec's pipelines, and the encoder's own next-item loss beside the ranker's.

Shape letters: B users, K interests of each, S targets, N negatives, D width, I = K * D.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchrec import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

import bseq_plugin as bseq
from bseq_dlrm.ranker import DLRMWithInterest

TARGET, NEGATIVE = "target", "negative"


@dataclass
class InterestBatch(Pipelineable):
    """What a step reads. The history goes to the encoder as it is: rebuilding it would stop the pipelining.

    Attributes:
        dense_features: float32 [B, *].
        sparse_features, history: of B rows each.
        labels: float32 [B], 0 or 1.
    """

    dense_features: Tensor
    sparse_features: KeyedJaggedTensor
    history: KeyedJaggedTensor
    labels: Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> InterestBatch:
        """The batch on another device."""
        return self._each(lambda value: value.to(device=device, non_blocking=non_blocking))

    def record_stream(self, stream: torch.Stream) -> None:
        """Tell the allocator of the stream that reads it."""
        for field in fields(self):
            getattr(self, field.name).record_stream(stream)

    def pin_memory(self) -> InterestBatch:
        """The batch in pinned memory."""
        return self._each(lambda value: value.pin_memory())

    def _each(self, change: Callable[[Any], Any]) -> InterestBatch:
        return InterestBatch(**{field.name: change(getattr(self, field.name)) for field in fields(self)})


class DLRMInterestTrain(nn.Module):
    """``InterestBatch -> (loss, (loss, logits, labels))``, TorchRec's convention for a train task.

    The loss is ``BCE + next_item_weight * next-item loss``, each a mean: over the rows, and over the targets.

    Args:
        ranker: what ``bseq.attach`` gave.
        next_item_weight: of ``NextItemLoss`` of the encoder that was attached last, which has ``item_keys =
            ("target", "negative")``; 0 leaves it out. With it the encoder scores items by itself, and can be published.
        loss_fn: of (logits, labels); default: binary cross-entropy, of probabilities if the host gives these.

    Raises UsageError for a weight below 0, or one that trains nothing: a frozen encoder, or one without these keys.
    """

    def __init__(self, ranker: nn.Module, next_item_weight: float = 0.0, *, loss_fn: nn.Module | None = None) -> None:
        super().__init__()
        if next_item_weight:
            _check_encoder(ranker, next_item_weight)
        probabilities = getattr(ranker, "gives_probabilities", False)
        self.model = ranker
        self.next_item_weight = next_item_weight
        self.next_item = NextItemLoss()
        self.loss_fn = loss_fn or (nn.BCELoss() if probabilities else nn.BCEWithLogitsLoss())

    def forward(self, batch: InterestBatch) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Return the loss, and what it was made of."""
        inputs = (batch.dense_features, batch.sparse_features, batch.history)
        if self.next_item_weight:
            logits, interest_BI, vectors = cast(DLRMWithInterest, self.model).logits_and_items(*inputs)
            next_item = self.next_item(interest_BI, vectors[TARGET], vectors[NEGATIVE], batch.history)
            logits = logits.squeeze(-1)
            loss = self.loss_fn(logits, batch.labels) + self.next_item_weight * next_item
        else:
            logits = self.model(*inputs).squeeze(-1)
            loss = self.loss_fn(logits, batch.labels)
        return loss, (loss.detach(), logits.detach(), batch.labels.detach())


class NextItemLoss(nn.Module):
    """Softmax cross-entropy of each ``target`` of a user among the ``negative`` items of the whole batch.

    A score is that of a store: the largest inner product of an interest and the item's vector. A negative that is the
    target itself is left out. Negatives are taken to be drawn alike: then the softmax needs no correction.
    """

    def forward(
        self, interest_BI: Tensor, target_SD: Tensor, negative_ND: Tensor, history: KeyedJaggedTensor
    ) -> Tensor:
        """Return the mean over the targets, of which a user has any number; 0 if nobody has one.

        Raises UsageError if the batch has targets and no negatives.
        """
        n_users, n_targets = len(interest_BI), len(target_SD)
        if not n_targets:
            return interest_BI.sum() * 0.0
        if not len(negative_ND):
            raise bseq.UsageError(f"key {NEGATIVE!r} has no item in this batch; give negatives, of any users")
        targets, negatives = history[TARGET], history[NEGATIVE]
        users_B = torch.arange(n_users, device=interest_BI.device)
        user_S = users_B.repeat_interleave(targets.lengths(), output_size=n_targets)
        interest_SKD = interest_BI.view(n_users, -1, target_SD.shape[1])[user_S]
        target_S = torch.einsum("skd,sd->sk", interest_SKD, target_SD).amax(dim=1)
        negative_SN = torch.einsum("skd,nd->skn", interest_SKD, negative_ND).amax(dim=1)
        negative_SN = negative_SN.masked_fill(targets.values()[:, None] == negatives.values(), float("-inf"))
        logits_SC = torch.cat([target_S[:, None], negative_SN], dim=1)
        return nn.functional.cross_entropy(logits_SC, torch.zeros_like(targets.values()).long())


def _check_encoder(ranker: nn.Module, weight: float) -> None:
    encoder = getattr(ranker, "interest", None)
    if weight < 0:
        raise bseq.UsageError(f"next_item_weight = {weight}; give 0 or more")
    if not isinstance(ranker, DLRMWithInterest) or not isinstance(encoder, bseq.SequenceInterestEncoder):
        raise bseq.UsageError(
            f"next_item_weight = {weight} needs a DLRMWithInterest with a SequenceInterestEncoder; this is a "
            f"{type(ranker).__name__} with a {type(encoder).__name__}"
        )
    if ranker.frozen:
        raise bseq.UsageError(f"next_item_weight = {weight} trains nothing: the encoder is frozen")
    if missing := [key for key in (TARGET, NEGATIVE) if key not in encoder.item_keys]:
        raise bseq.UsageError(
            f"next_item_weight = {weight} needs the encoder's item_keys {missing}; it has {list(encoder.item_keys)}: "
            f"SequenceInterestEncoder(..., item_keys={(TARGET, NEGATIVE)})"
        )
