"""Target attention: a candidate looks at its user's history, in packed form.

Shape letters: B users, T events of the packed batch, N candidates, P (candidate, event) pairs, D width, H hidden units.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bseq_plugin.errors import UsageError
from bseq_plugin.events.events import DAY_US
from bseq_plugin.layers import softmax_by_group
from bseq_plugin.schema.packed import PackedEvents


class TargetAttention(nn.Module):
    """The local activation unit of the Deep Interest Network: sum_j a(e_j, c) e_j over a candidate's history.

    a is a two-layer network of (e_j, c, e_j - c, e_j * c). Nothing is padded: time and memory go with the number of
    (candidate, event) pairs. It owns no tables, so that under TorchRec's pipeline it is a leaf of the trace; put it
    behind an ``EmbeddingCollection`` that looks up candidates and history in one table.

    Args:
        dim: D, of events and candidates.
        hidden: H, units of the first layer.
        weights: "sum": a as it is, so that the strength of the interest is kept (the paper's choice); "softmax": they
            sum to 1.
        time_decay: multiply each weight by exp(-rate * log(1 + age in days)), rate > 0 learned; needs times. The age is
            measured from ``at_N``.

    Raises:
        UsageError: dim or hidden below 1, or unknown ``weights``.

    Source: Zhou et al., Deep Interest Network for Click-Through Rate Prediction, KDD 2018; the decay follows the
    time-aware search of Pi et al., CIKM 2020.
    """

    def __init__(
        self, dim: int, hidden: int = 36, weights: Literal["sum", "softmax"] = "sum", time_decay: bool = False
    ) -> None:
        super().__init__()
        if dim < 1 or hidden < 1:
            raise UsageError(f"dim = {dim}, hidden = {hidden}; both are 1 or more")
        if weights not in ("sum", "softmax"):
            raise UsageError(f"weights = {weights!r}; use 'sum' or 'softmax'")
        self.dim = dim
        self.softmax = weights == "softmax"
        # the first layer on (e, c, e - c, e * c), taken apart: only the product needs a row a pair
        self.of_event = nn.Linear(dim, hidden, bias=False)
        self.of_candidate = nn.Linear(dim, hidden)
        self.of_product = nn.Linear(dim, hidden, bias=False)
        self.activation = nn.PReLU()
        self.score = nn.Linear(hidden, 1)
        self.decay = DecayRate() if time_decay else None

    def forward(
        self, candidates_ND: Tensor, events: PackedEvents, user_N: Tensor | None = None, at_N: Tensor | None = None
    ) -> Tensor:
        """Return ``[N, D]``, the history as each candidate sees it; zeros for a user without events.

        Args:
            candidates_ND: float.
            events: ``x_TD`` the looked-up events, oldest first; all of them count, so cut them at the request first.
            user_N: int64, the user (0..B-1) of each candidate; None: one candidate a user, in their order.
            at_N: int64 microseconds, the instant of each candidate's request; needed for ``time_decay`` only.

        Raises:
            UsageError: shapes that do not fit, or times that ``time_decay`` lacks.
        """
        user_N = self._users(candidates_ND, events, user_N)
        candidate_P, event_P = pairs(events, user_N)
        hidden_PH = (self.of_event(events.x_TD)[event_P] + self.of_candidate(candidates_ND)[candidate_P]) + (
            self.of_product(events.x_TD[event_P] * candidates_ND[candidate_P])
        )
        logit_P = self.score(self.activation(hidden_PH)).squeeze(1)
        if self.decay is not None:
            logit_P = self._decayed(logit_P, events, at_N, candidate_P, event_P)
        weight_P = logit_P
        if self.softmax:
            weight_P = softmax_by_group(logit_P, candidate_P, len(candidates_ND))
        context_ND = candidates_ND.new_zeros(candidates_ND.shape)
        return context_ND.index_add(0, candidate_P, weight_P[:, None] * events.x_TD[event_P])

    def _users(self, candidates_ND: Tensor, events: PackedEvents, user_N: Tensor | None) -> Tensor:
        for name, vectors in (("candidates_ND", candidates_ND), ("events.x_TD", events.x_TD)):
            if vectors.ndim != 2 or vectors.shape[1] != self.dim:
                raise UsageError(f"{name} has shape {tuple(vectors.shape)}; this attention has dim = {self.dim}")
        if user_N is None:
            if len(candidates_ND) != events.n_users:
                raise UsageError(
                    f"there are {len(candidates_ND)} candidates and {events.n_users} users; say whose they are: user_N="
                )
            return torch.arange(events.n_users, device=candidates_ND.device)
        if user_N.shape != candidates_ND.shape[:1]:
            raise UsageError(f"user_N has shape {tuple(user_N.shape)} for {len(candidates_ND)} candidates")
        return user_N

    def _decayed(
        self, logit_P: Tensor, events: PackedEvents, at_N: Tensor | None, candidate_P: Tensor, event_P: Tensor
    ) -> Tensor:
        if self.decay is None or at_N is None or events.timestamps_T is None:
            raise UsageError("time_decay needs events with timestamps_T, and at_N")
        age_P = (at_N[candidate_P] - events.timestamps_T[event_P]).clamp_min(0) / DAY_US
        log_factor_P: Tensor = self.decay(torch.log1p(age_P.to(logit_P.dtype)))
        return logit_P + log_factor_P if self.softmax else logit_P * log_factor_P.exp()


class DecayRate(nn.Module):
    """A module that returns -rate * x with a learned rate > 0, 0.1 at first."""

    def __init__(self) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.empty(()))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the rate to 0.1; also called when a model made on the meta device gets its memory."""
        with torch.no_grad():
            self.raw.fill_(math.log(math.expm1(0.1)))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``-rate * x``."""
        decayed: Tensor = -F.softplus(self.raw) * x
        return decayed


def pairs(events: PackedEvents, user_N: Tensor) -> tuple[Tensor, Tensor]:
    """Return int64 ``(candidate_P, event_P)``: each candidate with all events of its user, the oldest first."""
    length_N = events.lengths_B[user_N]
    candidate_P = torch.repeat_interleave(length_N)
    place_P = torch.arange(len(candidate_P), device=user_N.device) - (length_N.cumsum(0) - length_N)[candidate_P]
    return candidate_P, events.offsets_B1[user_N][candidate_P] + place_P
