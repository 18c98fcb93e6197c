"""Candidates x history without a loop over rows: requests of like size are padded into one batched matrix product.

Shape letters as in ``schema/ranking.py``; g requests of a group, n candidate rows and L events each, with padding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from bseq_plugin.schema.grid import SUM_BITS, products

PIECE_CELLS = 1 << 18  # cosines of a piece (about): they stay in a core's cache from one pass over them to the next
PADDING = -4.0  # below every cosine, so that it loses every comparison and has no weight after an exponential


@dataclass(frozen=True)
class RowGroup:
    """Candidate rows of g requests whose counts of rows, and of events, share the powers of two.

    Attributes:
        request_g: int64, the requests.
        row_gn: int64, candidate rows (0..N-1); only those with ``real_gn`` count.
        real_gn: bool, False for padding.
        candidates_gnD: float64 on the grid, e(candidate); NaN for an unknown item.
        event_gL: int64, the events of known items, *newest first*, places in the ``_T`` tensors; 0 for padding.
        is_event_gL: bool, False for padding.
        events_gLD: float64 on the grid, e(.) of the events, 0 for padding. L = 0 if there are none.
    """

    request_g: np.ndarray
    row_gn: np.ndarray
    real_gn: np.ndarray
    candidates_gnD: np.ndarray
    event_gL: np.ndarray
    is_event_gL: np.ndarray
    events_gLD: np.ndarray

    @cached_property
    def lengths_g(self) -> np.ndarray:
        """The number of known events of each request, int64 [g]."""
        return np.asarray(self.is_event_gL.sum(1))

    @cached_property
    def pieces(self) -> list[RowGroup]:
        """The same requests, a few at a time: for work on all candidates x events. Empty for a group without events."""
        (n_requests, n_rows), length = self.row_gn.shape, self.event_gL.shape[1]
        if length == 0:
            return []
        size = max(1, PIECE_CELLS // (n_rows * length))
        parts = [slice(start, start + size) for start in range(0, n_requests, size)]
        return [RowGroup(*(getattr(self, field.name)[part] for field in fields(self))) for part in parts]

    @cached_property
    def largest_gn(self) -> np.ndarray:
        """The largest cosine to an event, float32."""
        return torch.from_numpy(self.cosine_gnL).amax(2).numpy()  # torch's is several times as fast as NumPy's

    @cached_property
    def scale_g(self) -> np.ndarray:
        """Powers of two, float64: weights in [0, 1] as multiples of 1 / scale, times events, add up exactly.

        It follows from the request's own number of events, so that a row's value does not depend on others.
        """
        return np.asarray(np.exp2(SUM_BITS - np.ceil(np.log2(np.maximum(self.lengths_g, 1)))))

    @cached_property
    def consecutive(self) -> bool:
        """Whether the rows are one run without padding, as those of one request are in a table by request."""
        return bool(self.real_gn.all() and (np.diff(self.row_gn.ravel()) == 1).all())

    @cached_property
    def cosine_gnL(self) -> np.ndarray:
        """The cosine of each candidate with each event, float32; ``PADDING`` for padding, NaN for an unknown candidate.

        Exact up to the rounding to float32; may exceed 1 by as much as the grid allows: clamp what is made of it.
        """
        events_gDL = self.events_gLD.transpose(0, 2, 1)
        # torch's threads share the rounding too
        cosine_gnL = torch.from_numpy(products(self.candidates_gnD, events_gDL)).float().numpy()
        if not self.is_event_gL.all():
            np.copyto(cosine_gnL, np.float32(PADDING), where=~self.is_event_gL[:, None])
        return np.asarray(cosine_gnL)

    def put(self, values_gn: np.ndarray, out_N: np.ndarray) -> None:
        """Write ``values_gn`` [g, n, ...] to their rows of ``out_N`` [N, ...]."""
        if self.consecutive:
            out_N[self.row_gn[0, 0] : self.row_gn[-1, -1] + 1] = values_gn.reshape(-1, *values_gn.shape[2:])
        elif self.real_gn.all():
            out_N[self.row_gn] = values_gn
        else:
            out_N[self.row_gn[self.real_gn]] = values_gn[self.real_gn]


def row_groups(
    request_N: Tensor,
    candidate_N: Tensor,
    offsets_R1: Tensor,
    units_TD: np.ndarray,
    item_units: Callable[[Tensor], Tensor],
) -> list[RowGroup]:
    """Put all rows of a block into groups. Padding costs less than a factor of four, however many requests there are.

    Args:
        request_N, candidate_N, offsets_R1: as in ``FeatureInputs``.
        units_TD: float64 on the grid, e(.) of each event; NaN for an unknown item.
        item_units: vocabulary rows [...] -> e(.) of them, float64 [..., D] on the grid.
    """
    order_N = np.argsort(request_N.numpy(), kind="stable")
    rows_R = np.bincount(request_N.numpy(), minlength=len(offsets_R1) - 1)
    first_R = np.cumsum(rows_R) - rows_R
    known_T = np.flatnonzero(np.isfinite(units_TD[:, 0]))  # all of a unit vector is finite, or nothing
    stop_R = np.searchsorted(known_T, offsets_R1.numpy()[1:])
    known_R = np.diff(stop_R, prepend=0)
    bucket_R = np.where(rows_R > 0, 64 * _log2(rows_R) + _log2(known_R), -1)
    groups = []
    for bucket in np.unique(bucket_R[bucket_R >= 0]):
        request_g = np.flatnonzero(bucket_R == bucket)
        place_gn, real_gn = _padded(first_R[request_g], rows_R[request_g], 1)
        place_gL, is_event_gL = _padded(stop_R[request_g] - 1, known_R[request_g], -1)
        row_gn = order_N[place_gn]
        event_gL = known_T[place_gL] if len(known_T) else place_gL
        events_gLD = units_TD[event_gL]
        if not is_event_gL.all():
            events_gLD[~is_event_gL] = 0.0
        candidates_gnD = item_units(candidate_N[torch.from_numpy(row_gn)]).numpy()
        groups.append(RowGroup(request_g, row_gn, real_gn, candidates_gnD, event_gL, is_event_gL, events_gLD))
    return groups


def _padded(starts_g: np.ndarray, lengths_g: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ``(places [g, longest], real [g, longest])``: start, start + step, ... of each; 0 where not real."""
    count = np.arange(lengths_g.max())
    real = count < lengths_g[:, None]
    return np.where(real, starts_g[:, None] + step * count, 0), real


def _log2(counts: np.ndarray) -> np.ndarray:
    """Return int64, 1 + the power of two at or above; 0 for 0."""
    return np.where(counts > 0, 1 + np.ceil(np.log2(np.maximum(counts, 1))), 0).astype(np.int64)
