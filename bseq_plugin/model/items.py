"""Item rows and the vectors they are scored with."""

from __future__ import annotations

import warnings
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchrec import JaggedTensor, KeyedJaggedTensor

from bseq_plugin.data.items import ItemAttributes
from bseq_plugin.model.neighbours import NeighbourItems
from bseq_plugin.recipe.model import SimilaritySettings


class ItemTower(nn.Module):
    """A module that adds the vectors of an item's attributes to its looked-up row; of several values their mean.

    What item encoders say of an item changes its row once training is over; until then the tower only holds their
    ``NeighbourItems`` as ``encoded``, so that they are saved with the model.

    Attributes have few values, so their table is a dense parameter, copied to every rank; the item table alone is
    sharded. When a trained model is exported the sums are written into the item table (``folded``) and the tower is
    empty.
    """

    membership: Tensor
    membership_transposed: Tensor

    def __init__(
        self,
        dim: int,
        attributes: ItemAttributes | None = None,
        init_std: float = 0.02,
        encoded: NeighbourItems | None = None,
    ) -> None:
        super().__init__()
        self.encoded = encoded
        self.attribute_table: nn.Embedding | None = None
        if attributes is not None:
            self.attribute_table = nn.Embedding(attributes.n_codes, dim)
            nn.init.normal_(self.attribute_table.weight, std=init_std)
            matrix = _membership(attributes)
            self.register_buffer("membership", matrix, persistent=False)
            self.register_buffer("membership_transposed", matrix.t().to_sparse_csr(), persistent=False)

    def forward(self, looked_up: dict[str, JaggedTensor], features: KeyedJaggedTensor, keys: list[str]) -> list[Tensor]:
        """Return ``[N, D]`` for each of ``keys``: the item rows of that key of the batch."""
        rows = [looked_up[key].values() for key in keys]
        if self.attribute_table is None:
            return rows
        return self._with_attributes(rows, [features[key].values() for key in keys])

    def _with_attributes(self, rows: list[Tensor], ids: list[Tensor]) -> list[Tensor]:
        # Summed once for the whole catalogue, then looked up like rows: histories repeat items many times over.
        table_CD = cast(nn.Embedding, self.attribute_table).weight
        matrices = (self.membership, self.membership_transposed)
        sums_VD = _SparseProduct.apply(*matrices, table_CD)  # type: ignore[no-untyped-call]
        added = torch.split(F.embedding(torch.cat(ids), sums_VD), [len(i) for i in ids])
        return [row + more for row, more in zip(rows, added, strict=True)]

    @torch.no_grad()
    def folded(self, rows_ND: Tensor, first_row: int = 0, columns: slice = slice(None)) -> Tensor:
        """Return rows of the item table from ``first_row`` on, or columns of them, with their attributes' vectors."""
        if self.attribute_table is None:
            return rows_ND
        starts = self.membership.crow_indices()[first_row : first_row + len(rows_ND) + 1]
        own = slice(int(starts[0]), int(starts[-1]))
        codes_M, shares_M = self.membership.col_indices()[own], self.membership.values()[own]
        table_CD = self.attribute_table.weight[:, columns].contiguous()
        added_ND = F.embedding_bag(codes_M, table_CD, starts[:-1] - starts[0], mode="sum", per_sample_weights=shares_M)
        return rows_ND + added_ND.to(rows_ND.device)


def _membership(attributes: ItemAttributes) -> Tensor:
    """Return sparse CSR float32 [V + 1, codes], the share of a value where an item has it."""
    offsets, codes_M = torch.from_numpy(attributes.offsets), torch.from_numpy(attributes.codes_M)
    shares_M = torch.from_numpy(attributes.shares_M)
    shape = (len(attributes.offsets) - 1, attributes.n_codes)
    with warnings.catch_warnings():  # torch announces once that its CSR support is new
        warnings.simplefilter("ignore", UserWarning)
        return torch.sparse_csr_tensor(offsets, codes_M, shares_M, shape, check_invariants=True)


class _SparseProduct(torch.autograd.Function):
    """A constant sparse matrix times a dense parameter; keeps the transpose, which autograd would make every step."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, transposed: Tensor, dense: Tensor) -> Tensor:
        ctx.transposed = transposed
        return matrix @ dense

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[None, None, Tensor]:
        return None, None, ctx.transposed @ grad_outputs[0]


def score_vectors(rows_ND: Tensor, priors_NP: Tensor | None, cosine: bool) -> Tensor:
    """Return ``[N, D + P]``, what an interest is multiplied with: rows, of length 1 for cosine scores, and priors."""
    vectors_ND = F.normalize(rows_ND, dim=-1) if cosine else rows_ND
    return vectors_ND if priors_NP is None else torch.cat([vectors_ND, priors_NP], dim=1)


class InterestHead(nn.Module):
    """A module from an encoder state to an interest vector, the left-hand side of every score.

    For cosine scores the state is brought to length 1 / temperature (learned). With P priors, P weights are
    read off the state and appended: how much this user follows the crowd.
    """

    def __init__(self, dim: int, n_priors: int, similarity: SimilaritySettings) -> None:
        super().__init__()
        self.cosine = similarity.kind == "cosine"
        self.scale = ScaleParameter(1.0 / similarity.temperature) if similarity.kind == "cosine" else None
        self.prior_weights = PriorWeights(dim, n_priors) if n_priors else None

    def forward(self, states_ND: Tensor) -> Tensor:
        """Bring ``[N, D]`` to ``[N, D + P]``."""
        if self.cosine:
            states_ND = F.normalize(states_ND, dim=-1)
        interests = states_ND if self.scale is None else self.scale(states_ND)
        if self.prior_weights is None:
            return interests
        return torch.cat([interests, self.prior_weights(states_ND)], dim=1)


class PriorWeights(nn.Linear):
    """A linear layer that begins the same for everybody: 0.3 of each popularity column, whatever the state."""

    def reset_parameters(self) -> None:
        """Set weights to 0 and biases to 0.3; also called when a model made on the meta device gets its memory."""
        nn.init.zeros_(self.weight)
        nn.init.constant_(self.bias, 0.3)


class ScaleParameter(nn.Module):
    """A module that multiplies by a learned positive number."""

    def __init__(self, initial: float) -> None:
        super().__init__()
        self.initial = initial
        self.log_scale = nn.Parameter(torch.empty(()))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the initial scale; also called when a model made on the meta device gets its memory."""
        with torch.no_grad():
            self.log_scale.fill_(torch.tensor(self.initial).log().item())

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` times the scale."""
        return x * self.log_scale.exp()
