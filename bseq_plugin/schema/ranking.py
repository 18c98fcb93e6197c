"""What a ranking feature may read. Events at or after a request's ``at`` are cut off before a feature sees anything.

Shape letters: R requests (one user at one instant), N candidate rows, T history events of all requests, K interests,
V catalogue items, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

# Unit vectors are rounded to multiples of 2^-24, all of which float32 holds. Products of two are then multiples of
# 2^-48 and their sums stay below 2^5, so a dot product in float64 is exact: in any order, in any BLAS kernel, in any
# block. That is why a feature has the same bytes for one row online and for a million rows offline.
GRID = 2.0**-24


def on_grid(x: Tensor) -> Tensor:
    """float64, every element rounded to the nearest multiple of ``GRID``; for elements in [-1, 1]."""
    return torch.round(x.double() / GRID) * GRID


def unit_vectors(x: Tensor) -> Tensor:
    """float64 on the grid, ``x`` [..., D] over its L2 norm; all of a vector is NaN if its norm is 0 or not finite."""
    wide = x.to(torch.float64, copy=True)
    norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    norm = torch.where(torch.isfinite(norm) & (norm > 0), norm, torch.nan)
    # in place: these are the largest tensors of a block, and the time goes into memory
    return wide.mul_(1 / (norm * GRID)).round_().mul_(GRID)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """float64 [...], inner products of vectors [..., D] on the grid, clamped to [-1, 1]; NaN stays NaN."""
    return (a * b).sum(-1).clamp(-1.0, 1.0)


@dataclass(frozen=True)
class FeatureInputs:
    """Inputs of one block of candidate rows, on CPU. What several features need is computed once a block.

    Attributes:
        request_N: int64, the request each candidate row belongs to.
        candidate_N: int64, vocabulary rows; 0 = an item unknown to the store.
        at_R: int64, microseconds since the epoch (UTC).
        offsets_R1: int64 [R + 1], where each request's history begins in the ``_T`` tensors (oldest event first).
        items_T: int64, vocabulary rows of the history; 0 = unknown item.
        timestamps_T: int64, microseconds; every one is strictly before its request's ``at``.
        event_types_T: int64 rows of the event-type vocabulary, or None.
        interests_RKD: float32, interest vectors as of ``at``, as the model scores with them; NaN for a request
            without history, and for an interest that a user with fewer than K does not have.
        item_vectors_VD: float32 [V + 1, D], as the model scores with them. Read it through ``item_vectors`` or
            ``item_units``: row 0 stands for no item, and only they know.
        retrieval_rank_N, retrieval_score_N, retrieval_interest_N: float32, NaN if the candidate was not retrieved;
            None if the candidates have no such column.
    """

    request_N: Tensor
    candidate_N: Tensor
    at_R: Tensor
    offsets_R1: Tensor
    items_T: Tensor
    timestamps_T: Tensor
    event_types_T: Tensor | None
    interests_RKD: Tensor
    item_vectors_VD: Tensor
    retrieval_rank_N: Tensor | None = None
    retrieval_score_N: Tensor | None = None
    retrieval_interest_N: Tensor | None = None

    def item_vectors(self, rows: Tensor) -> Tensor:
        """float32 [..., D] for vocabulary rows [...]; NaN for row 0."""
        return torch.where((rows > 0)[..., None], self.item_vectors_VD[rows], torch.nan)

    def item_units(self, rows: Tensor) -> Tensor:
        """float64 [..., D] on the grid, the L2-normalised item vectors e(.); NaN for row 0 and for zero vectors."""
        return unit_vectors(self.item_vectors(rows))

    @cached_property
    def lengths_R(self) -> Tensor:
        """int64 [R], events of each request's history."""
        return self.offsets_R1[1:] - self.offsets_R1[:-1]

    @cached_property
    def request_T(self) -> Tensor:
        """int64 [T], the request each event belongs to."""
        return torch.repeat_interleave(self.lengths_R, output_size=self.items_T.shape[0])

    @cached_property
    def candidate_units_ND(self) -> Tensor:
        """float64 [N, D], e(candidate); NaN for an unknown item."""
        return self.item_units(self.candidate_N)

    @cached_property
    def history_units_TD(self) -> Tensor:
        """float64 [T, D], e(.) of each event; NaN for an unknown item."""
        return self.item_units(self.items_T)

    @cached_property
    def interest_units_RKD(self) -> Tensor:
        """float64 [R, K, D], L2-normalised interests; NaN where there is none."""
        return unit_vectors(self.interests_RKD)

    @cached_property
    def cosine_NK(self) -> Tensor:
        """float64 [N, K], cosine of each candidate to each interest of its user; NaN where either is missing."""
        return cosine(self.interest_units_RKD[self.request_N], self.candidate_units_ND[:, None])
