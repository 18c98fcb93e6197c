"""The inputs of ranking features. Events at or after a request's ``at`` are cut off before a feature sees anything.

Shape letters: R requests (one user at one instant), N candidate rows, T history events of all requests, K interests,
V catalogue items, D width, M vectors a request.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from bseq_plugin.schema.grid import first_at_or_after, products, rows_of, unit_vectors
from bseq_plugin.schema.ranking_groups import RowGroup, row_groups

Shared = TypeVar("Shared")


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
        retrieval_rank_N, retrieval_score_N, retrieval_interest_N, retrieval_n_interests_N: float32, NaN if the
            candidate was not retrieved; None if the candidates have no such column.
        session_ids_T: int64, equal within a session of one request, or None.
        event_types: names of the event types, of row 1 on.
        category_V: int64 [V + 1], the category of each item, 0 = missing; or None.
        interests_at_R: int64, microseconds, the newest event that the interests know, -1 where there are none; or
            None.
        model_version: a number below 2^24 that tells encoders apart, or None.
        item_units_VD: float32 [V + 1, D], ``unit_table(item_vectors_VD)`` if somebody has computed it.
        log_times, log_starts_R, log_ends_R: int64, times of a whole log, and the part of it that a request may know,
            however long; None: the ``_T`` tensors are all there is.
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
    retrieval_n_interests_N: Tensor | None = None
    session_ids_T: Tensor | None = None
    event_types: tuple[str, ...] = ()
    category_V: Tensor | None = None
    interests_at_R: Tensor | None = None
    model_version: int | None = None
    item_units_VD: Tensor | None = None
    log_times: Tensor | None = None
    log_starts_R: Tensor | None = None
    log_ends_R: Tensor | None = None

    def item_vectors(self, rows: Tensor) -> Tensor:
        """Return float32 [..., D] for vocabulary rows [...]; NaN for row 0."""
        return torch.where((rows > 0)[..., None], self.item_vectors_VD[rows], torch.nan)

    def item_units(self, rows: Tensor) -> Tensor:
        """Return float64 [..., D] on the grid, the L2-normalised item vectors e(.); NaN for row 0 and zero vectors."""
        if self.item_units_VD is None:
            return unit_vectors(self.item_vectors(rows))
        return rows_of(self.item_units_VD, rows).double()

    def once(self, function: Callable[[FeatureInputs], Shared]) -> Shared:
        """Return ``function(self)``, computed at the first call: for what several features share."""
        if function not in self._shared:
            self._shared[function] = function(self)
        return cast(Shared, self._shared[function])

    @cached_property
    def _shared(self) -> dict[Callable[[FeatureInputs], Any], Any]:
        return {}

    @cached_property
    def lengths_R(self) -> Tensor:
        """The number of events of each request's history that were read, int64 [R]."""
        return self.offsets_R1[1:] - self.offsets_R1[:-1]

    @cached_property
    def request_T(self) -> Tensor:
        """The request each event belongs to, int64 [T]."""
        return torch.repeat_interleave(self.lengths_R, output_size=self.items_T.shape[0])

    def count_before(self, limit_R: Tensor) -> Tensor:
        """Return int64 [R], how many of all events that a request may know are strictly before ``limit_R``
        (microseconds).
        """
        times, starts_R, ends_R = self.log_times, self.log_starts_R, self.log_ends_R
        if times is None or starts_R is None or ends_R is None:
            times, starts_R, ends_R = self.timestamps_T, self.offsets_R1[:-1], self.offsets_R1[1:]
        stop_R = first_at_or_after(times.numpy(), starts_R.numpy(), ends_R.numpy(), limit_R.numpy())
        return torch.from_numpy(stop_R) - starts_R

    @cached_property
    def candidate_units_ND(self) -> Tensor:
        """The unit vector e(candidate) of each row, float64 [N, D]; NaN for an unknown item."""
        return self.item_units(self.candidate_N)

    @cached_property
    def history_units_TD(self) -> Tensor:
        """The unit vector e(.) of each event's item, float64 [T, D]; NaN for an unknown item."""
        return self.item_units(self.items_T)

    @cached_property
    def interest_units_RKD(self) -> Tensor:
        """The L2-normalised interests, float64 [R, K, D]; NaN where there is none."""
        return unit_vectors(self.interests_RKD)

    @cached_property
    def groups(self) -> list[RowGroup]:
        """The candidate rows by request, in groups of requests of like size; every row is in one of them."""
        units_TD = self.history_units_TD.numpy()
        return row_groups(self.request_N, self.candidate_N, self.offsets_R1, units_TD, self.item_units)

    @property
    def pieces(self) -> list[RowGroup]:
        """The groups with events in pieces that stay in the cache: for work on all candidates x events."""
        return [piece for group in self.groups for piece in group.pieces]

    def cosines(self, vectors_RMD: Tensor) -> Tensor:
        """Return float64 [N, M], e(candidate) times its request's vectors, clamped to [-1, 1]; NaN stays NaN.

        Args:
            vectors_RMD: float64 on the grid, of length 1 or less.
        """
        product_NM = np.empty((self.candidate_N.shape[0], vectors_RMD.shape[1]))
        vectors_RDM = vectors_RMD.numpy().transpose(0, 2, 1)
        for group in self.groups:
            group.put(products(group.candidates_gnD, vectors_RDM[group.request_g]), product_NM)
        return torch.from_numpy(product_NM).clamp_(-1.0, 1.0)

    @cached_property
    def cosine_NK(self) -> Tensor:
        """The cosine of each candidate to each interest of its user, float64 [N, K]; NaN where either is missing."""
        return self.cosines(self.interest_units_RKD)
