"""A sequence-interest encoder inside TorchRec's DLRM: Naumov et al., Deep Learning Recommendation Model, 2019.

Shape letters: B rows, F sparse features, D width of the embeddings, I width of the interest.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torchrec import KeyedJaggedTensor
from torchrec.models.dlrm import DLRM
from torchrec.streamable import Pipelineable

import bseq_plugin as bseq


@bseq.hookimpl
def bseq_attach(host: nn.Module, interest: bseq.HistoryEncoder, frozen: bool) -> nn.Module | None:
    """``DLRMWithInterest`` for TorchRec's DLRM and its subclasses."""
    return DLRMWithInterest(host, interest, frozen) if isinstance(host, DLRM) else None


class DLRMWithInterest(nn.Module):
    """``(dense [B, *], sparse, history) -> logits [B, 1]``; the host's own logits until it is trained.

    Args:
        host: a DLRM, DLRM_DCN or DLRM_Projection; all of its modules are shared but the first layer of its over arch.
        interest: the encoder; ``history`` has its keys.
        frozen: gradients and dropout stop before the encoder.
    """

    def __init__(self, host: DLRM, interest: bseq.HistoryEncoder, frozen: bool = False) -> None:
        super().__init__()
        first = _first_layer(host.over_arch)
        n_features = len(host.sparse_arch.sparse_feature_names)
        dim = host.sparse_arch.embedding_bag_collection.embedding_bag_configs()[0].embedding_dim
        self.frozen = frozen
        self.interest = interest.requires_grad_(not frozen)
        self.sparse_arch, self.dense_arch, self.inter_arch = host.sparse_arch, host.dense_arch, host.inter_arch
        self.interest_cross = InterestCross(interest.width, dim, first.weight.device)
        self.over_arch = copy.deepcopy(host.over_arch)
        _first_perceptron(self.over_arch)._linear = WidenedLinear(first, dim + 1 + n_features)
        self.train(host.training)

    def forward(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor, history: KeyedJaggedTensor) -> Tensor:
        """Logits [B, 1]."""
        embedded_dense = self.dense_arch(dense_features)
        embedded_sparse = self.sparse_arch(sparse_features)
        crossed = self.inter_arch(dense_features=embedded_dense, sparse_features=embedded_sparse)
        interest_BI = self.interest(history)[bseq.USER_INTEREST]
        if self.frozen:
            interest_BI = interest_BI.detach()
        of_interest = self.interest_cross(interest_BI, embedded_dense, embedded_sparse)
        logits: Tensor = self.over_arch(torch.cat([crossed, of_interest], dim=1))
        return logits

    def train(self, mode: bool = True) -> DLRMWithInterest:
        """A frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.interest.eval()
        return self


class InterestCross(nn.Module):
    """Projection of the interest to D, and its inner products with the dense and every sparse embedding.

    The projection begins as the identity where the widths agree: embeddings that start as the encoder's item vectors
    are compared with the interest from the first step on.
    """

    def __init__(self, interest_dim: int, dim: int, device: torch.device) -> None:
        super().__init__()
        self.projection = bseq.IdentityLinear(interest_dim, dim, device=device)

    def forward(self, interest_BI: Tensor, dense_BD: Tensor, sparse_BFD: Tensor) -> Tensor:
        """[B, D + 1 + F]."""
        projected_BD = self.projection(interest_BI)
        embedded_BFD = torch.cat([dense_BD[:, None], sparse_BFD], dim=1)
        return torch.cat([projected_BD, torch.einsum("bd,bfd->bf", projected_BD, embedded_BFD)], dim=1)


class WidenedLinear(nn.Linear):
    """A linear layer with ``n_more`` inputs behind those of ``narrow``, of no weight at first."""

    def __init__(self, narrow: nn.Linear, n_more: int) -> None:
        self.n_more = n_more
        super().__init__(narrow.in_features + n_more, narrow.out_features, device=narrow.weight.device)
        with torch.no_grad():
            self.weight[:, : narrow.in_features] = narrow.weight
            self.bias.copy_(narrow.bias)

    def reset_parameters(self) -> None:
        """As ``nn.Linear`` of the narrow inputs; zeros for the rest."""
        narrow = self.in_features - self.n_more
        bound = narrow**-0.5
        with torch.no_grad():
            self.weight[:, :narrow].uniform_(-bound, bound)
            self.weight[:, narrow:].zero_()
            self.bias.uniform_(-bound, bound)


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
        return InterestBatch(
            self.dense_features.to(device, non_blocking=non_blocking),
            self.sparse_features.to(device, non_blocking),
            self.history.to(device, non_blocking),
            self.labels.to(device, non_blocking=non_blocking),
        )

    def record_stream(self, stream: torch.Stream) -> None:
        """Tell the allocator of the stream that reads it."""
        for value in (self.dense_features, self.sparse_features, self.history, self.labels):
            value.record_stream(stream)

    def pin_memory(self) -> InterestBatch:
        """The batch in pinned memory."""
        return InterestBatch(
            self.dense_features.pin_memory(),
            self.sparse_features.pin_memory(),
            self.history.pin_memory(),
            self.labels.pin_memory(),
        )


class DLRMInterestTrain(nn.Module):
    """``InterestBatch -> (loss, (loss, logits, labels))``, TorchRec's convention for a train task."""

    def __init__(self, ranker: nn.Module) -> None:
        super().__init__()
        self.model = ranker
        self.loss_fn = nn.BCEWithLogitsLoss()

    def forward(self, batch: InterestBatch) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Binary cross-entropy, mean over the rows."""
        logits = self.model(batch.dense_features, batch.sparse_features, batch.history).squeeze(-1)
        loss = self.loss_fn(logits, batch.labels)
        return loss, (loss.detach(), logits.detach(), batch.labels.detach())


def _first_perceptron(over_arch: nn.Module) -> nn.Module:
    try:
        perceptron: nn.Module = over_arch.model[0]._mlp[0]  # type: ignore[index,union-attr]
        if isinstance(perceptron._linear, nn.Linear):
            return perceptron
    except (AttributeError, IndexError, TypeError):
        pass
    raise bseq.UsageError(
        f"the over arch is a {type(over_arch).__name__} that does not begin with TorchRec's MLP; its first layer can't "
        "be widened. Attach before you replace it"
    )


def _first_layer(over_arch: nn.Module) -> nn.Linear:
    return cast(nn.Linear, _first_perceptron(over_arch)._linear)
