"""When something comes, in discrete time: a hazard for each bin of days, learned also from what has not come yet.

The discrete-time survival likelihood of Gensheimer and Narasimhan ("A scalable discrete-time survival model for neural
networks", PeerJ 2019), with a constant rate inside a bin, so that any number of days can be asked.

Shape letters: N waits, J bins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

import bseq_plugin as bseq

# fine where most returns are; what comes after the last edge comes at the rate of the last bin
RETURN_EDGES = (
    0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.5, 10.0, 12.0, 14.0, 17.0, 21.0, 28.0, 35.0, 42.0, 60.0, 90.0,
    140.0,
)  # fmt: skip


@dataclass(frozen=True)
class Bins:
    """J bins of days, from 0 on.

    Raises UsageError for edges that do not begin with 0 and ascend.
    """

    edges: tuple[float, ...] = RETURN_EDGES

    def __post_init__(self) -> None:
        ascending = all(a < b < math.inf for a, b in pairwise(self.edges))  # not so with a NaN
        if len(self.edges) < 2 or self.edges[0] != 0 or not ascending:
            raise bseq.UsageError(f"edges of bins = {self.edges}; give 0 and then ascending days")

    @property
    def n(self) -> int:
        """J."""
        return len(self.edges) - 1

    @property
    def _lower_and_width(self) -> tuple[Tensor, Tensor]:
        edges = torch.tensor(self.edges, dtype=torch.float64)
        return edges[:-1], edges.diff()

    def passed(self, days_N: Tensor) -> Tensor:
        """float64 [N, J], how much of each bin lies before so many days, 0 to 1."""
        lower_J, width_J = self._lower_and_width
        return ((days_N.double()[:, None] - lower_J) / width_J).clamp(0, 1)

    def log_survival(self, logits_NJ: Tensor, days_N: Tensor) -> Tensor:
        """float64 [N], ln of the chance that nothing comes within so many days; the hazard of a bin is
        ``sigmoid(logit)``.
        """
        rates_NJ = F.softplus(logits_NJ.double())  # -ln(1 - hazard)
        beyond_N = (days_N.double() - self.edges[-1]).clamp_min(0) / (self.edges[-1] - self.edges[-2])
        return -(rates_NJ * self.passed(days_N)).sum(1) - rates_NJ[:, -1] * beyond_N

    def losses(self, logits_NJ: Tensor, days_N: Tensor, came_N: Tensor, weights_J: Tensor | None = None) -> Tensor:
        """``[N]``, -ln of the likelihood of what came after ``days_N`` days (``came_N``), or has not come by then.

        The bin of an event counts as an event in it; the bins before, and the part of a bin that has passed without
        one, as waited through. An event beyond the last edge is one that has not come by then.

        Args:
            weights_J: of the terms of each bin, for instance ``instant_weights``; default: 1.
        """
        passed_NJ = self.passed(days_N).to(logits_NJ.dtype)
        lower_J, width_J = self._lower_and_width
        inside_NJ = (days_N.double()[:, None] >= lower_J) & (days_N.double()[:, None] < lower_J + width_J)
        hit_NJ = inside_NJ & came_N[:, None]
        waited_NJ = F.softplus(logits_NJ) * torch.where(hit_NJ, 0.0, passed_NJ)
        terms_NJ = waited_NJ + F.softplus(-logits_NJ) * hit_NJ
        return (terms_NJ if weights_J is None else terms_NJ * weights_J).sum(1)

    def instant_weights(self, horizon_days: float) -> Tensor:
        """float32 [J]: with these, one wait has the loss of all its instants.

        Asked at every instant of a wait whether something comes within ``horizon_days``, given that nothing has so far,
        a day at t days is asked about from the instants of the ``min(t, horizon)`` days before it. So the sum of these
        questions' log-likelihoods is one pass over the bins, each with the mean of ``min(t, horizon) / horizon``.
        """
        if not 0 < horizon_days < math.inf:
            raise bseq.UsageError(f"horizon_days = {horizon_days}; give a positive number of days")
        edges = torch.tensor(self.edges, dtype=torch.float64)
        below = edges.clamp_max(horizon_days)
        integral = below**2 / 2 + horizon_days * (edges - below)
        return (integral.diff() / edges.diff() / horizon_days).float()
