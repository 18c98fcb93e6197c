"""Id rows of items and the vectors that item encoders give them, made one.

Shape letters: V catalogue items, N looked-up rows, U distinct items among them, D width of the item table, E width of
the encoders' vectors.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bseq_plugin.data.item_vectors import ItemVectors
from bseq_plugin.schema.recipe import Recipe

SAMPLE = 100_000  # items that a mean and a covariance are taken of
BEGIN = 0.3  # standard deviation of the projected vectors before training
LEAST = 0.1  # of the mean variance is added to that of each direction


class WhitenedVectors(nn.Module):
    """Whose vectors these are, their mean and their whitening axes: buffers that go with a model.

    Args:
        width: E.
        vectors: of all items, for a new model; None for one whose state is read.
    """

    identity: Tensor  # uint8 [32]: sha256 of the encoders
    centre_E: Tensor
    axes_EE: Tensor

    def __init__(self, width: int, vectors: ItemVectors | None = None) -> None:
        super().__init__()
        identity = bytes(32) if vectors is None else bytes.fromhex(vectors.identity)
        self.register_buffer("identity", torch.tensor(list(identity), dtype=torch.uint8))
        centre_E, axes_EE = torch.zeros(width), torch.zeros(width, width)
        if vectors is not None:
            centre_E, axes_EE = whitening(vectors.vectors_VE)
        self.register_buffer("centre_E", centre_E)
        self.register_buffer("axes_EE", axes_EE)

    @property
    def vectors_identity(self) -> str:
        """``ItemVectors.identity`` of the vectors that the model was made with."""
        return bytes(self.identity.tolist()).hex()


class EncodedItems(WhitenedVectors):
    """``fuse(id row, projection(vector))``, and the id row left out at random while training.

    The vectors are frozen and copied to every rank; only a projection of them, whitened, is learned. With
    ``id_dropout`` an item is known by its vector alone in a share of the steps (in histories and as a candidate alike),
    so that the projection learns to carry items without an id row: DropoutNet (Volkovs et al., NeurIPS 2017). Items
    without a vector keep their id.

    Args:
        width: E.
        vectors: of all items (training); None in an exported model, whose item table has them summed in and which keeps
            the projection for items that come later.
    """

    vectors_VE: Tensor | None

    def __init__(self, recipe: Recipe, width: int, vectors: ItemVectors | None = None) -> None:
        super().__init__(width, vectors)
        self.id_dropout = recipe.id_dropout
        self.projection = LeadingDirections(width, recipe.dim, recipe.members)
        self.gate = Gate(recipe.vector_dim) if recipe.item_fusion == "gate" else None
        known = None if vectors is None else torch.from_numpy(vectors.vectors_VE)
        self.register_buffer("vectors_VE", known, persistent=False)

    def forward(self, rows: list[Tensor], ids: list[Tensor]) -> list[Tensor]:
        """``[N, D]`` for each of ``rows``, the looked-up rows of ``ids`` (int64 [N]); as they are without vectors."""
        if self.vectors_VE is None:
            return rows
        ids_U, places = torch.unique(torch.cat(ids), return_inverse=True)
        vectors_UE = F.embedding(ids_U, self.vectors_VE)
        projected_UD = self.projected(vectors_UE)
        kept_U1 = self._kept(vectors_UE)
        fused = []
        for row_ND, place_N in zip(rows, torch.split(places, [len(i) for i in ids]), strict=True):
            if kept_U1 is not None:
                row_ND = row_ND * F.embedding(place_N, kept_U1)
            fused.append(self.fuse(row_ND, F.embedding(place_N, projected_UD)))
        return fused

    def projected(self, vectors_NE: Tensor) -> Tensor:
        """``[N, D]``: the projection of the whitened vectors; zeros stay zeros."""
        # both matrices at once: to whiten V vectors would cost more than all else
        weight_DE = self.projection.weight @ self.axes_EE.T
        return F.linear(vectors_NE - self.centre_E, weight_DE) * vectors_NE.any(1, keepdim=True)

    def fuse(self, rows_ND: Tensor, projected_ND: Tensor) -> Tensor:
        """The sum, or the gated mean; an id row of zeros leaves what the vector says."""
        return rows_ND + projected_ND if self.gate is None else self.gate(rows_ND, projected_ND)

    def rows_of(self, vectors_NE: Tensor, table_VD: Tensor | None = None, counts_V: np.ndarray | None = None) -> Tensor:
        """``[N, D]``, rows of the item table for items without an id row; other items are not asked."""
        projected_ND = self.projected(vectors_NE)
        return self.fuse(torch.zeros_like(projected_ND), projected_ND)

    def folded(self, rows_ND: Tensor, first_row: int, columns: slice) -> Tensor:
        """Rows ``first_row``... of the item table, or some of their columns, with their vectors."""
        if self.vectors_VE is None:
            return rows_ND
        vectors_NE = self.vectors_VE[first_row : first_row + len(rows_ND)]
        return self.fuse(rows_ND, self.projected(vectors_NE)[:, columns].to(rows_ND.device))

    def _kept(self, vectors_UE: Tensor) -> Tensor | None:
        """float [U, 1], 0 where the id row is left out in this step; None if it never is."""
        if not self.training or self.id_dropout == 0:
            return None
        drawn_U1 = torch.rand(len(vectors_UE), 1, device=vectors_UE.device) >= self.id_dropout
        return (drawn_U1 | ~vectors_UE.any(1, keepdim=True)).to(vectors_UE.dtype)


def whitening(vectors_VE: np.ndarray) -> tuple[Tensor, Tensor]:
    """(mean float32 [E], axes float32 [E, E]) of the vectors that are not zero.

    Sentence vectors share a large common part and lie in few directions (Su et al., "Whitening Sentence
    Representations", 2021), so that a projection of them learns slowly. The directions of most variance come first;
    those of little are not blown up to 1: what they hold is mostly rounding.
    """
    known = np.flatnonzero(vectors_VE.any(1))
    sample = vectors_VE[known[:: max(1, len(known) // SAMPLE)]].astype(np.float64)
    centre_E = sample.mean(0)
    variances, axes_EE = np.linalg.eigh((sample - centre_E).T @ (sample - centre_E) / len(sample))
    scale_E = 1 / np.sqrt(variances.clip(0) + LEAST * variances.mean() + 1e-12)
    return torch.from_numpy(centre_E).float(), torch.from_numpy((axes_EE * scale_E)[:, ::-1].copy()).float()


class LeadingDirections(nn.Linear):
    """Begins with the directions of largest variance as they are: items alike in text are alike from the first step on.

    A random projection would have to learn that first, and id rows learn faster. Each of ``members`` has ``dim``
    columns of its own, and begins alike. Without bias: no vector, no change.
    """

    def __init__(self, width: int, dim: int, members: int) -> None:
        self.members = members
        super().__init__(width, members * dim, bias=False)

    def reset_parameters(self) -> None:
        """Back to the leading directions, ``BEGIN`` wide."""
        with torch.no_grad():
            for part in self.weight.chunk(self.members):
                part.copy_(BEGIN * torch.eye(*part.shape))


class Gate(nn.Module):
    """``2 g * row + 2 (1 - g) * projected``, g = sigmoid(W [row, projected]) a column; begins as the sum."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """g = 1/2 everywhere."""
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, rows_ND: Tensor, projected_ND: Tensor) -> Tensor:
        """``[N, D]``."""
        share_ND = torch.sigmoid(self.linear(torch.cat([rows_ND, projected_ND], dim=1)))
        return 2 * (share_ND * rows_ND + (1 - share_ND) * projected_ND)
