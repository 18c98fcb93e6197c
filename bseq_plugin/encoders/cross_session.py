"""Sessions summarised, and attended with the gaps between them.

Shape letters: B users, T packed events, Q of them that are asked for, S sessions of the whole batch (oldest first,
users one after the other), D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from bseq_plugin.encoders.hstu import HstuBlock
from bseq_plugin.encoders.packed.attention import TileView
from bseq_plugin.encoders.packed.pairs import N_TIME_BUCKETS, PairFeatures, n_distance_buckets, time_bucket
from bseq_plugin.encoders.packed.stack import PositionEmbedding
from bseq_plugin.errors import RecipeError
from bseq_plugin.layers import ZeroLinear, dropout
from bseq_plugin.schema.encoders import SequenceEncoder
from bseq_plugin.schema.options import PartOptions
from bseq_plugin.schema.packed import PackedEvents

NO_GAP = N_TIME_BUCKETS  # bucket of a user's first session
OWN_SHARE = 0.1  # of a session's summary in the state behind it, beside what is attended to


class CrossSessionOptions(PartOptions):
    """Options of the ``cross_session`` encoder."""

    n_session_blocks: int = Field(1, ge=1, description="blocks over the events of a session")
    n_history_blocks: int = Field(1, ge=1, description="blocks over the sessions of a user")
    n_heads: int = Field(2, ge=1)
    paths: Literal["both", "session", "history"] = Field(
        "both", description="'session' = the own session only; 'history' = completed sessions only"
    )
    gap: bool = Field(True, description="read the time between sessions")
    gate: bool = Field(True, description="a learned gate between both paths; without it their mean")


@dataclass(frozen=True)
class Sessions:
    """Where the sessions of a batch stand among its events.

    Attributes:
        of_event_T: int64, the session of each event.
        offsets_S1: int64, where each session's events begin; the last entry is T.
        offsets_B1: int64, where each user's sessions begin; the last entry is S.
        first_S: bool, a user's first session.
    """

    of_event_T: Tensor
    offsets_S1: Tensor
    offsets_B1: Tensor
    first_S: Tensor

    @classmethod
    def of(cls, events: PackedEvents) -> Sessions:
        """Find the sessions of a batch. Raises RecipeError if the events do not say which session they belong to."""
        if events.sessions_T is None:
            raise RecipeError(
                "encoder 'cross_session' reads sessions, but the events have no session_number: make the batch with "
                "history_features(sequences, recipe), from a log with session ids or times"
            )
        first_T = events.position_T == 0
        starts_T = first_T.clone()
        starts_T[1:] |= events.sessions_T[1:] != events.sessions_T[:-1]
        rows_S = starts_T.nonzero().flatten()
        offsets_S1 = torch.cat([rows_S, events.offsets_B1[-1:]])
        passed_T1 = nn.functional.pad(starts_T.cumsum(0), (1, 0))
        return cls(passed_T1[1:] - 1, offsets_S1, passed_T1[events.offsets_B1], first_T[rows_S])

    def gaps(self, times_T: Tensor) -> Tensor:
        """Return int64 [S], the bucket of the time since the user's session before ended; ``NO_GAP`` for the first."""
        begins_S = self.offsets_S1[:-1]
        between_S = times_T[begins_S] - times_T[begins_S - 1]  # the first has none before it, and is masked
        return time_bucket(between_S).masked_fill(self.first_S, NO_GAP)

    def known(self, position_T: Tensor) -> tuple[Tensor, Tensor]:
        """Return two int64 [T]: the events of the own session up to each event, and those of completed sessions."""
        before_T = position_T[self.offsets_S1[:-1]][self.of_event_T]
        return position_T - before_T + 1, before_T


class CrossSessionEncoder(SequenceEncoder[CrossSessionOptions]):
    """A short-term path within the session, a long-term path over completed sessions, and a gate between them.

    Short: pointwise attention (``HstuBlock``) among the events of one session. A completed session is summarised by its
    last short state. Long: pointwise attention over the sessions, a weight for each session read off its summary, the
    gap before it, and the distance and time between sessions; what is summed with these weights in the first block is
    the sum of the values of a session's events, so that large sessions count for more. An event's state is
    ``g * short + (1 - g) * long``, where long is the state behind the last session before its own plus an embedding of
    the gap between the two, and ``g = sigmoid(W [short, long] + ln(n_short / n_long))`` with the numbers of events that
    the two paths know, 1 if there are none. So it knows completed sessions, and the events of its own session up to
    itself. It begins as ``hstu`` does: as the sum of what was.

    The two levels follow hierarchical session models (Quadrana et al., "Personalizing Session-based Recommendations
    with Hierarchical Recurrent Neural Networks", RecSys 2017), with attention in place of recurrence; the gate between
    a long-term and a short-term interest that of SLi-Rec (Yu et al., "Adaptive User Modeling with Long and Short-Term
    Preferences for Personalized Recommendation", IJCAI 2019).

    Raises RecipeError if ``dim`` is not a multiple of ``n_heads``, and when events come without sessions, or with
    ``gap`` without times.
    """

    name = "cross_session"
    reads_sessions = True

    def __init__(self, dim: int, max_length: int, dropout: float, options: CrossSessionOptions | None = None) -> None:
        super().__init__(dim, max_length, dropout, options)
        chosen = self.options
        if dim % chosen.n_heads:
            raise RecipeError(f"dim = {dim} is not a multiple of encoder.n_heads = {chosen.n_heads}")
        self.position = PositionEmbedding(max_length, dim)
        self.session_blocks = nn.ModuleList(
            HstuBlock(dim, chosen.n_heads, dropout, n_distance_buckets(max_length), 0)
            for _ in range(chosen.n_session_blocks)
        )
        self.history = None if chosen.paths == "session" else HistoryPath(dim, max_length, dropout, chosen)
        self.gate = ZeroLinear(2 * dim, dim) if chosen.paths == "both" and chosen.gate else None
        self.norm = nn.LayerNorm(dim)

    def forward(self, events: PackedEvents) -> Tensor:
        """Return ``states_TD``; see ``SequenceEncoder.forward``."""
        return self._states(events, None)

    def states_at(self, events: PackedEvents, rows_Q: Tensor) -> Tensor:
        """Return ``states_QD``; both paths are joined for these rows alone."""
        return self._states(events, rows_Q)

    def _states(self, events: PackedEvents, rows_Q: Tensor | None) -> Tensor:
        if events.x_TD.shape[0] == 0:
            return events.x_TD
        sessions = Sessions.of(events)
        short_TD = self._within(events, sessions)
        rows = slice(None) if rows_Q is None else rows_Q
        states_QD = short_TD[rows]
        if self.history is not None:
            long_QD = self.history(short_TD, events, sessions)[sessions.of_event_T[rows]]
            own_Q, before_Q = (known_T[rows].to(states_QD.dtype) for known_T in sessions.known(events.position_T))
            log_odds_Q = (own_Q / before_Q.clamp_min(1)).log()
            states_QD = self._joined(states_QD, long_QD, log_odds_Q[:, None])
        normed_QD: Tensor = self.norm(states_QD)
        return normed_QD

    def _within(self, events: PackedEvents, sessions: Sessions) -> Tensor:
        """Return ``[T, D]``, the short-term states; to the blocks every session is a user of its own."""
        own = PackedEvents(events.x_TD, sessions.offsets_S1, longest=events.longest)
        x_TD = dropout(own.x_TD + self.position(own.position_T), self.dropout, self.training)
        return _through(self.session_blocks, own.with_x(x_TD), PairFeatures(distance=True))

    def _joined(self, short_QD: Tensor, long_QD: Tensor, log_odds_Q1: Tensor) -> Tensor:
        if self.options.paths == "history":
            return long_QD
        if self.gate is None:
            return (short_QD + long_QD) / 2
        return torch.lerp(long_QD, short_QD, torch.sigmoid(self.gate(torch.cat([short_QD, long_QD], 1)) + log_odds_Q1))


class HistoryPath(nn.Module):
    """The long-term path: a summary of the completed sessions of a user when a session begins."""

    def __init__(self, dim: int, max_length: int, dropout: float, options: CrossSessionOptions) -> None:
        super().__init__()
        self.pair_features = PairFeatures(distance=True, time=options.gap)
        n_times = N_TIME_BUCKETS if options.gap else 0
        self.blocks = nn.ModuleList(
            HstuBlock(dim, options.n_heads, dropout, n_distance_buckets(max_length), n_times)
            for _ in range(options.n_history_blocks)
        )
        self.gap_before = PositionEmbedding(NO_GAP + 1, dim) if options.gap else None
        self.gap_since = PositionEmbedding(NO_GAP + 1, dim) if options.gap else None
        self.nothing_before = PositionEmbedding(1, dim)
        self.own_share_D = nn.Parameter(torch.full((dim,), OWN_SHARE))

    def reset_parameters(self) -> None:
        """Set ``own_share_D`` to ``OWN_SHARE``."""
        nn.init.constant_(self.own_share_D, OWN_SHARE)

    def forward(self, short_TD: Tensor, events: PackedEvents, sessions: Sessions) -> Tensor:
        """Return ``[S, D]``, the long-term state of each session, from the sessions before it."""
        n_sessions = sessions.first_S.shape[0]
        x_SD, times_S, gaps_S = self.own_share_D * short_TD[sessions.offsets_S1[1:] - 1], None, None
        if self.gap_before is not None:
            if events.timestamps_T is None:
                raise RecipeError(
                    "encoder.gap reads times, but the events have none; train on a log with times, or set gap = false"
                )
            gaps_S, times_S = sessions.gaps(events.timestamps_T), events.timestamps_T[sessions.offsets_S1[1:] - 1]
            x_SD = x_SD + self.gap_before(gaps_S)
        values_TD = cast(HstuBlock, self.blocks[0]).values(events.x_TD)
        values_SD = values_TD.new_zeros(n_sessions, values_TD.shape[1]).index_add(0, sessions.of_event_T, values_TD)
        behind = PackedEvents(x_SD, sessions.offsets_B1, times_S, longest=events.longest)
        behind_SD = _through(self.blocks, behind, self.pair_features, values_SD)
        # looked up in one table with the vector for "nothing before", so that every weight has a gradient in any batch
        places_S = torch.arange(n_sessions, device=behind_SD.device).masked_fill(sessions.first_S, 0)
        before_SD = torch.cat([self.nothing_before.weight, behind_SD])[places_S]
        return before_SD if self.gap_since is None or gaps_S is None else before_SD + self.gap_since(gaps_S)


def _through(
    blocks: nn.ModuleList, events: PackedEvents, features: PairFeatures, values_TD: Tensor | None = None
) -> Tensor:
    """Return ``[T, D]``, the output of the last block; ``values_TD`` are the values of the first one."""
    view = TileView.of(events, features)
    x = view.layout.spread(events.x_TD)
    values = None if values_TD is None else view.layout.spread(values_TD)
    for block in blocks:
        x, values = block(x, view, None, values), None
    return view.layout.gather(x)
