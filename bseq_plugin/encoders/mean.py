"""Weighted mean of the events: the smallest encoder that knows what came before, and hard to beat on short logs."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from bseq_plugin.events.events import DAY_US
from bseq_plugin.schema.encoders import SequenceEncoder
from bseq_plugin.schema.options import PartOptions
from bseq_plugin.schema.packed import PackedEvents

MAX_HALVINGS = 90  # 2 ** -90 still has all its digits in float32; a history that spans more is flat before that


class MeanOptions(PartOptions):
    """Options of the ``mean`` encoder."""

    half_life_days: float | None = Field(
        None, gt=0, description="an event this much older than the newest counts half; not given: all count the same"
    )
    feed_forward: int = Field(0, ge=0, description="inner width of a residual feed-forward part; 0 = none")
    event_dropout: float = Field(0.0, ge=0, lt=1, description="share of events left out of a mean while training")


class MeanEncoder(SequenceEncoder[MeanOptions]):
    """Each state is the mean of its user's events up to itself, weighted by ``0.5 ** (age / half_life_days)``.

    Without options it has no parameters. Times are read only if there is a half life; without times all events count
    the same. ``dropout`` is that of the feed-forward part.
    """

    name = "mean"

    def __init__(self, dim: int, max_length: int, dropout: float, options: MeanOptions | None = None) -> None:
        super().__init__(dim, max_length, dropout, options)
        inner = self.options.feed_forward
        self.reads_dropout = inner > 0
        self.tail = FeedForward(dim, inner, dropout) if inner else None

    def forward(self, events: PackedEvents) -> Tensor:
        """Return ``states_TD``; see ``SequenceEncoder.forward``."""
        if events.x_TD.shape[0] == 0:
            return events.x_TD
        # Sums run inside each user, oldest and lightest first, in float64: a difference of sums that run over the whole
        # batch would lose the light weights of old events.
        sums, _ = events.with_x(self._weighted(events).double()).padded()
        return self._finish(events.packed(sums.cumsum(1)), events.x_TD.dtype)

    def states_at(self, events: PackedEvents, rows_Q: Tensor) -> Tensor:
        """Return ``states_QD``; where only newest events are asked for, one sum a user is enough."""
        users_Q = events.user_T[rows_Q]
        if events.longest is not None or not torch.equal(rows_Q, events.offsets_B1[1:][users_Q] - 1):
            return super().states_at(events, rows_Q)
        sums_BD = events.x_TD.new_zeros(events.n_users, events.x_TD.shape[1] + 1)
        sums_BD = sums_BD.index_add(0, events.user_T, self._weighted(events))
        return self._finish(sums_BD[users_Q], events.x_TD.dtype)

    def attention(self, events: PackedEvents) -> Tensor | None:
        """Return ``[T]``, the weights of the mean."""
        weights_T = self._weights(events)
        sums_B = weights_T.new_zeros(events.n_users).index_add(0, events.user_T, weights_T)
        return weights_T / sums_B[events.user_T]

    def _finish(self, sums_ND: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the states for sums of (weighted x, weight): their means, through the feed-forward part."""
        mean_ND = (sums_ND[:, :-1] / sums_ND[:, -1:].clamp_min(1e-30)).to(dtype)
        return mean_ND if self.tail is None else self.tail(mean_ND)

    def _weighted(self, events: PackedEvents) -> Tensor:
        """Return ``[T, D + 1]``: weight times x, and the weight."""
        weights_T1 = self._weights(events)[:, None]
        return torch.cat([events.x_TD * weights_T1, weights_T1], 1)

    def _weights(self, events: PackedEvents) -> Tensor:
        """Return float [T]. Only ratios within a user matter, so that ages may count from the user's newest event."""
        weights_T = events.x_TD.new_ones(events.x_TD.shape[0])
        if self.options.half_life_days is not None and events.timestamps_T is not None and len(weights_T):
            newest_T = events.timestamps_T[(events.offsets_B1[1:] - 1).clamp_min(0)][events.user_T]
            ages_T = (newest_T - events.timestamps_T) / (self.options.half_life_days * DAY_US)
            weights_T = 0.5 ** ages_T.clamp(max=MAX_HALVINGS).to(weights_T.dtype)
        if self.training and self.options.event_dropout:
            kept_T = torch.rand(weights_T.shape, device=weights_T.device) >= self.options.event_dropout
            weights_T = weights_T * (kept_T | (events.position_T == 0))  # never all of them
        return weights_T


class FeedForward(nn.Module):
    """The layers ``norm(x + feed_forward(x))`` behind the normalised mean."""

    def __init__(self, dim: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.norm_in, self.norm_out = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.into, self.out = nn.Linear(dim, inner), nn.Linear(inner, dim)

    def forward(self, x_TD: Tensor) -> Tensor:
        """Return a tensor of the shape of ``x``."""
        x_TD = self.norm_in(x_TD)
        inner = F.gelu(self.into(F.dropout(x_TD, self.dropout, self.training)))
        normed: Tensor = self.norm_out(x_TD + self.out(F.dropout(inner, self.dropout, self.training)))
        return normed
