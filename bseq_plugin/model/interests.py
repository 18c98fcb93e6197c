"""Several interests a user, read off the states of a whole history.

Shape letters: B users, T packed events, Q users that are asked for, K interests, D width, S targets.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from bseq_plugin.layers import softmax_by_group
from bseq_plugin.schema.losses import Targets
from bseq_plugin.schema.packed import PackedEvents

ROUTING_STEPS = 3


class MultiInterests(nn.Module):
    """K interests of each user: ``[Q * K, D]``, those of a user one after the other; zeros for one without events."""

    def __init__(self, dim: int, n_interests: int, method: Literal["self_attention", "routing"]) -> None:
        super().__init__()
        self.pool = SelfAttentivePool(dim, n_interests) if method == "self_attention" else RoutingPool(dim, n_interests)

    def forward(self, events: PackedEvents, states_TD: Tensor, rows_Q: Tensor | None = None) -> Tensor:
        """Return the interests of all users, or of those whose newest events are the packed rows ``rows_Q``."""
        interests_BKD = self.pool(events, states_TD)
        if rows_Q is not None:
            interests_BKD = interests_BKD[events.user_T[rows_Q]]
        flat_ND: Tensor = interests_BKD.flatten(0, 1)
        return flat_ND


class SelfAttentivePool(nn.Module):
    """The pool ``softmax(W2 tanh(W1 H))`` over a user's events, K weights an event (Cen et al., "Controllable
    Multi-Interest Framework for Recommendation" (ComiRec-SA), KDD 2020, section 3.2).
    """

    def __init__(self, dim: int, n_interests: int) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(dim, 4 * dim, bias=False), nn.Linear(4 * dim, n_interests, bias=False)

    def forward(self, events: PackedEvents, states_TD: Tensor) -> Tensor:
        """Return ``[B, K, D]``, the pooled events."""
        scores_TK = self.out(torch.tanh(self.into(states_TD)))
        return _sums(events, softmax_by_group(scores_TK, events.user_T, events.n_users), states_TD)


class RoutingPool(nn.Module):
    """The pool of behaviour-to-interest dynamic routing (Li et al., "Multi-Interest Network with Dynamic Routing for
    Recommendation at Tmall" (MIND), CIKM 2019, section 3.3; ComiRec-DR, section 3.2).

    Every event is mapped by one matrix; three times, events are shared out among the interests by a softmax of their
    routing logits, each interest is the squashed sum of its events, and logits grow by the product of event and
    interest. Both papers break the tie between interests with random first logits; a server has to answer alike twice,
    so that here the first logits are products with K learned vectors.
    """

    def __init__(self, dim: int, n_interests: int) -> None:
        super().__init__()
        self.bilinear, self.seeds = nn.Linear(dim, dim, bias=False), nn.Linear(dim, n_interests, bias=False)

    def forward(self, events: PackedEvents, states_TD: Tensor) -> Tensor:
        """Return ``[B, K, D]``, each interest of a length below 1."""
        mapped_TD = self.bilinear(states_TD)
        logits_TK = self.seeds(mapped_TD)
        for step in range(ROUTING_STEPS):
            interests_BKD = squash(_sums(events, logits_TK.softmax(1), mapped_TD))
            if step < ROUTING_STEPS - 1:
                logits_TK = logits_TK + torch.einsum("tkd,td->tk", interests_BKD[events.user_T], mapped_TD)
        return interests_BKD


def squash(x: Tensor) -> Tensor:
    """Return ``|x|^2 / (1 + |x|^2) * x / |x|``; 0 stays 0."""
    square = x.square().sum(-1, keepdim=True)
    return x * square / (1 + square) / (square + 1e-9).sqrt()


def _sums(events: PackedEvents, weights_TK: Tensor, x_TD: Tensor) -> Tensor:
    """Return ``[B, K, D]``, weighted sums over the events of each user."""
    shape = (events.n_users, weights_TK.shape[1], x_TD.shape[1])
    return x_TD.new_zeros(shape).index_add(0, events.user_T, weights_TK[..., None] * x_TD[:, None])


def label_aware(interests_QKD: Tensor, targets: Targets) -> Targets:
    """Match every target with the interest of its user that fits it best; ``state_S`` then counts interests.

    Label-aware attention in its hard form (MIND, section 3.4, with the power at infinity; ComiRec, section 3.3): what
    retrieval does with the largest of the scores.
    """
    n_interests = interests_QKD.shape[1]
    with torch.no_grad():
        scores_SK = torch.einsum("skd,sd->sk", interests_QKD[targets.state_S], targets.vectors_SD)
    state_S = targets.state_S * n_interests + scores_SK.argmax(1)
    order_S = state_S.argsort(stable=True)
    places_S = targets.places_S
    return replace(
        targets,
        vectors_SD=targets.vectors_SD[order_S],
        ids_S=targets.ids_S[order_S],
        state_S=state_S[order_S],
        weights_S=targets.weights_S[order_S],
        places_S=None if places_S is None else places_S[order_S],
    )
