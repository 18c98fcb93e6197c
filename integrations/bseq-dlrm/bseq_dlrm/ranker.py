"""A sequence-interest encoder inside TorchRec's rankers: Naumov et al., Deep Learning Recommendation Model, 2019;
Guo et al., DeepFM, 2017.

Shape letters: B rows, F sparse features, D width of the embeddings, I width of the interest.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchrec import KeyedJaggedTensor, KeyedTensor
from torchrec.models.deepfm import SimpleDeepFMNN
from torchrec.models.dlrm import DLRM

import bseq_plugin as bseq


class DLRMWithInterest(nn.Module):
    """``(dense [B, *], sparse, history) -> logits [B, 1]``; what the host gives until it is trained.

    Args:
        host: a DLRM, DLRM_DCN, DLRM_Projection or SimpleDeepFMNN, or one that has an encoder already. All of its
            modules are shared but the first layer of its over arch.
        interest: the encoder; ``history`` has its keys, and those of an encoder that the host has already.
        frozen: gradients and dropout stop before the encoder.

    Raises UsageError for an over arch that can't be widened, and for a class whose ``forward`` is not TorchRec's, since
    that would not be called.

    Attributes:
        interest: the encoder that was attached last.
        earlier: those that were attached before it.
    """

    def __init__(self, host: nn.Module, interest: bseq.HistoryEncoder, frozen: bool = False) -> None:
        super().__init__()
        _check_forward(host)
        arch = cast(Any, host)
        first = cast(nn.Linear, getattr(*_first_layer(arch.over_arch)))
        names = _sparse_names(arch)
        dim = arch.sparse_arch.embedding_bag_collection.embedding_bag_configs()[0].embedding_dim
        self.frozen = frozen
        self.interest = interest.requires_grad_(not frozen)
        self.sparse_arch, self.dense_arch, self.inter_arch = arch.sparse_arch, arch.dense_arch, arch.inter_arch
        self.earlier = nn.ModuleList(_encoders_of(host))
        self.interest_cross = InterestCross(interest.width, dim, first.weight.device, _names_to_read(host, names))
        self.over_arch = copy.deepcopy(arch.over_arch)
        setattr(*_first_layer(self.over_arch), WidenedLinear(first, dim + 1 + len(names)))
        self.train(host.training)

    @property
    def gives_probabilities(self) -> bool:
        """Whether a sigmoid is the host's last layer, as SimpleDeepFMNN's is."""
        *_, last = self.over_arch.modules()
        return isinstance(last, nn.Sigmoid)

    def forward(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor, history: KeyedJaggedTensor) -> Tensor:
        """Logits [B, 1], or the host's probabilities."""
        interest_BI = self.interest(history)[bseq.USER_INTEREST]
        return self._logits(dense_features, sparse_features, history, interest_BI)

    def logits_and_items(
        self, dense_features: Tensor, sparse_features: KeyedJaggedTensor, history: KeyedJaggedTensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Logits, the interest [B, I], and the vectors of the encoder's ``item_keys``: of one look-up.

        See ``SequenceInterestEncoder.interest_and_items``.
        """
        interest, vectors = cast(bseq.SequenceInterestEncoder, self.interest).interest_and_items(history)
        interest_BI = interest[bseq.USER_INTEREST]
        return self._logits(dense_features, sparse_features, history, interest_BI), interest_BI, vectors

    def _logits(
        self, dense_features: Tensor, sparse_features: KeyedJaggedTensor, history: KeyedJaggedTensor, interest: Tensor
    ) -> Tensor:
        embedded_dense = self.dense_arch(dense_features)
        embedded_sparse = self.sparse_arch(sparse_features)
        inputs = [self.inter_arch(dense_features=embedded_dense, sparse_features=embedded_sparse)]
        inputs += [one(history, embedded_dense, embedded_sparse) for one in self.earlier]
        interest_BI = interest.detach() if self.frozen else interest
        inputs.append(self.interest_cross(interest_BI, embedded_dense, embedded_sparse))
        logits: Tensor = self.over_arch(torch.cat(inputs, dim=1))
        return logits

    def train(self, mode: bool = True) -> DLRMWithInterest:
        """A frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.interest.eval()
        return self


HOSTS = (DLRM, SimpleDeepFMNN, DLRMWithInterest)


class EarlierInterest(nn.Module):
    """An encoder that a host had when another one was attached, with what it adds to the over arch."""

    def __init__(self, interest: nn.Module, interest_cross: InterestCross, frozen: bool) -> None:
        super().__init__()
        self.frozen, self.interest, self.interest_cross = frozen, interest, interest_cross

    def forward(self, history: KeyedJaggedTensor, dense_BD: Tensor, sparse: Tensor | KeyedTensor) -> Tensor:
        """[B, D + 1 + F]."""
        interest_BI = self.interest(history)[bseq.USER_INTEREST]
        crossed: Tensor = self.interest_cross(interest_BI.detach() if self.frozen else interest_BI, dense_BD, sparse)
        return crossed

    def train(self, mode: bool = True) -> EarlierInterest:
        """A frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.interest.eval()
        return self


class InterestCross(nn.Module):
    """Projection of the interest to D, and its inner products with the dense and every sparse embedding.

    The projection begins as the identity where the widths agree: embeddings that start as the encoder's item vectors
    are compared with the interest from the first step on.

    Args:
        names: of the embeddings, if they come as a KeyedTensor.
    """

    def __init__(self, interest_dim: int, dim: int, device: torch.device, names: list[str] | None = None) -> None:
        super().__init__()
        self.names = names
        self.projection = bseq.IdentityLinear(interest_dim, dim, device=device)

    def forward(self, interest_BI: Tensor, dense_BD: Tensor, sparse: Tensor | KeyedTensor) -> Tensor:
        """[B, D + 1 + F], of embeddings [B, F, D]."""
        if self.names is not None:
            sparse = torch.stack([sparse[name] for name in self.names], dim=1)
        projected_BD = self.projection(interest_BI)
        embedded_BFD = torch.cat([dense_BD[:, None], cast(Tensor, sparse)], dim=1)
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


def _check_forward(host: nn.Module) -> None:
    """Raise UsageError if a subclass computes something of its own."""
    maker = next(kind for kind in type(host).__mro__ if "forward" in vars(kind))
    if maker is not DLRMWithInterest and not maker.__module__.startswith("torchrec."):
        raise bseq.UsageError(
            f"{maker.__name__} has a forward of its own, which an attached model would not call; give the class a "
            "method attach_interest(interest, frozen) -> nn.Module, and bseq.attach asks it"
        )


def _sparse_names(host: Any) -> list[str]:
    names = host.inter_arch.sparse_feature_names if _reads_keyed(host) else host.sparse_arch.sparse_feature_names
    return list(names)


def _names_to_read(host: nn.Module, names: list[str]) -> list[str] | None:
    return names if _reads_keyed(host) else None


def _reads_keyed(host: Any) -> bool:
    """Whether the embeddings come as a KeyedTensor, as SimpleDeepFMNN's do."""
    if isinstance(host, DLRMWithInterest):
        return host.interest_cross.names is not None
    return isinstance(host, SimpleDeepFMNN)


def _encoders_of(host: nn.Module) -> list[nn.Module]:
    if not isinstance(host, DLRMWithInterest):
        return []
    return [*host.earlier, EarlierInterest(host.interest, host.interest_cross, host.frozen)]


def _first_layer(over_arch: nn.Module) -> tuple[nn.Module, str]:
    """Return the module that has the over arch's first linear layer, and its name there."""
    try:
        first: Any = over_arch.model[0]  # type: ignore[index]
        if isinstance(first, nn.Linear):
            return cast(nn.Module, over_arch.model), "0"
        if isinstance(first._mlp[0]._linear, nn.Linear):
            return first._mlp[0], "_linear"
    except (AttributeError, IndexError, TypeError):
        pass
    raise bseq.UsageError(
        f"the over arch is a {type(over_arch).__name__} that does not begin with TorchRec's MLP; its first layer can't "
        "be widened. Attach before you replace it"
    )
