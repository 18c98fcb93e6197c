"""What a two-tower is trained with: candidates of its own for each user, or the candidates of the whole batch.

Both are modules, so that TorchRec's pipeline, which traces the task, leaves them as they are.
Shape letters: B users, K candidates of each, O width of the towers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

import bseq_plugin as bseq

if TYPE_CHECKING:
    from bseq_two_tower.task import TwoTowerBatch

Scored = tuple[Tensor, Tensor, Tensor]  # loss, logits, labels


class CandidateLoss(nn.Module):
    """Binary cross-entropy of the inner product, mean over users and candidates.

    Labels are [B], a candidate each, or [B, K]: K candidates of each user, of which any number may be chosen.
    """

    def forward(self, query_BO: Tensor, candidate_NO: Tensor, batch: TwoTowerBatch) -> Scored:
        """Return the loss, and logits and labels in the form in which the labels were given."""
        n_users, n_candidates, labels = len(query_BO), len(candidate_NO), _float32(batch.labels, "labels")
        if labels.ndim not in (1, 2) or len(labels) != n_users or labels.numel() != n_candidates:
            raise bseq.UsageError(
                f"{n_users} histories, {n_candidates} candidates and labels {tuple(labels.shape)} don't fit: give "
                "labels [B] with B candidates, or [B, K] with B * K candidates, those of a user one after the other, "
                "each a row of the candidates' KeyedJaggedTensor"
            )
        logits = torch.einsum("bo,bko->bk", query_BO, candidate_NO.view(n_users, -1, query_BO.shape[1])).view_as(labels)
        return nn.functional.binary_cross_entropy_with_logits(logits, labels), logits, labels


class InBatchSoftmax(nn.Module):
    """Cross-entropy of each user's candidate among all candidates of the batch (of this process).

    A user's label is the weight of the row: with 0 its candidate is a negative of the others and no more. The same item
    elsewhere in the batch is no negative. With ``batch.log_q``, the logarithm of how often each candidate comes up, the
    score learned is free of popularity: Yi et al., Sampling-Bias-Corrected Neural Modeling, RecSys 2019.

    Args:
        item_key: the candidates' key with the item's id, one a row; default: their only one.
        temperature: what inner products are divided by.
    """

    def __init__(self, item_key: str | None = None, temperature: float = 1.0) -> None:
        super().__init__()
        if not temperature > 0:
            raise bseq.UsageError(f"temperature = {temperature}; give a number above 0")
        self.item_key, self.temperature = item_key, temperature

    def forward(self, query_BO: Tensor, candidate_BO: Tensor, batch: TwoTowerBatch) -> Scored:
        """Return the loss, logits [B, B], and for each user the column of her candidate."""
        n_users = len(query_BO)
        given = {"histories": (n_users,), "candidates": (len(candidate_BO),), "labels": tuple(batch.labels.shape)}
        given |= {} if batch.log_q is None else {"log_q": tuple(batch.log_q.shape)}
        if set(given.values()) != {(n_users,)}:
            said = ", ".join(f"{name} {list(shape)}" for name, shape in given.items())
            raise bseq.UsageError(
                f"in-batch negatives need one candidate and one label for each history; given: {said}"
            )
        logits_BB = query_BO @ candidate_BO.T / self.temperature
        if batch.log_q is not None:
            logits_BB = logits_BB - _float32(batch.log_q, "log_q")
        ids_B = self._item_ids(batch, n_users)
        same_BB = (ids_B[:, None] == ids_B) & ~torch.eye(n_users, dtype=torch.bool, device=ids_B.device)
        logits_BB = logits_BB.masked_fill(same_BB, float("-inf"))
        own_B = torch.arange(n_users, device=logits_BB.device)
        losses_B = nn.functional.cross_entropy(logits_BB, own_B, reduction="none")
        weights_B = _float32(batch.labels, "labels")
        return (losses_B * weights_B).sum() / weights_B.sum().clamp(min=1e-9), logits_BB, own_B

    def _item_ids(self, batch: TwoTowerBatch, n_users: int) -> Tensor:
        keys = batch.candidates.keys()
        if self.item_key is None and len(keys) > 1:
            raise bseq.UsageError(f"candidates have {keys}; say which is the item's id: InBatchSoftmax(item_key=...)")
        key = keys[0] if self.item_key is None else self.item_key
        if key not in keys:
            raise bseq.UsageError(f"item_key = {key!r}: candidates have {keys}")
        ids_N = batch.candidates[key].values()
        if len(ids_N) != n_users:
            raise bseq.UsageError(f"candidates have {len(ids_N)} ids under {key!r} for {n_users} users; give each one")
        return ids_N


def _float32(values: Tensor, name: str) -> Tensor:
    if values.dtype != torch.float32:
        raise bseq.UsageError(f"{name} are {values.dtype}; give float32: {name}.float()")
    return values
