"""Packed events: the layout every encoder works in.

Shape letters: B users, T events of the whole batch (one row an event, no padding), L padded length, D width.
Users stand one after the other, each user's events oldest first:

    x_TD         a0 a1 a2 | b0 | d0 d1          (user c has no events)
    offsets_B1   0        3    4  4     6
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class PackedEvents:
    """A batch of histories.

    Attributes:
        x_TD: float, embedded events.
        offsets_B1: int64 [B + 1], where each user's rows begin; the last entry is T.
        timestamps_T: int64, microseconds since the epoch (UTC), or None if the log has no times.
        event_types_T: int64, rows of the event-type vocabulary (0 = unknown type), or None.
        sessions_T: int64, sessions of the same user before that of the event, or None: there for encoders that
            say so (``SequenceEncoder.reads_sessions``).
        longest: a bound on every length that is known without reading the data, or None: there where a graph is
            traced for ``torch.export``. Every tensor then has a size that follows from T, B and this bound, and nothing
            in Python may depend on what the tensors hold.
    """

    x_TD: Tensor
    offsets_B1: Tensor
    timestamps_T: Tensor | None = None
    event_types_T: Tensor | None = None
    sessions_T: Tensor | None = None
    longest: int | None = None

    @cached_property
    def lengths_B(self) -> Tensor:
        """The number of events of each user, int64 [B]."""
        return self.offsets_B1[1:] - self.offsets_B1[:-1]

    @cached_property
    def user_T(self) -> Tensor:
        """The user (0..B-1) each row belongs to, int64 [T]."""
        if self.longest is None and self.n_users == 1:
            return self.offsets_B1.new_zeros(self.x_TD.shape[0])
        return torch.repeat_interleave(self.lengths_B, output_size=self.x_TD.shape[0])

    @cached_property
    def position_T(self) -> Tensor:
        """The place of each event in its history, int64 [T]: 0 for the oldest."""
        rows = torch.arange(self.x_TD.shape[0], device=self.x_TD.device)
        return rows - self.offsets_B1[:-1][self.user_T]

    @cached_property
    def age_T(self) -> Tensor:
        """The number of later events of the same user, int64 [T]: 0 for the newest."""
        rows = torch.arange(1, self.x_TD.shape[0] + 1, device=self.x_TD.device)
        return self.offsets_B1[1:][self.user_T] - rows

    @property
    def n_users(self) -> int:
        """The number of users, B."""
        return self.offsets_B1.shape[0] - 1

    def with_x(self, x_TD: Tensor) -> PackedEvents:
        """Return the same events with other values; x_TD may have another width."""
        return replace(self, x_TD=x_TD)

    def padded(self) -> tuple[Tensor, Tensor]:
        """Return ``(x_BLD, mask_BL)``: right-padded with zeros, True where an event is. L is ``longest`` if that is
        given, else the longest history.
        """
        length = self.longest if self.longest is not None else int(self.lengths_B.max()) if self.n_users else 0
        x_BLD = self.x_TD.new_zeros(self.n_users, length, self.x_TD.shape[1])
        x_BLD[self.user_T, self.position_T] = self.x_TD
        mask_BL = torch.arange(length, device=self.x_TD.device) < self.lengths_B[:, None]
        return x_BLD, mask_BL

    def packed(self, x_BLD: Tensor) -> Tensor:
        """Return ``x_TD``, the inverse of ``padded`` for a tensor of the same B and L."""
        return x_BLD[self.user_T, self.position_T]
