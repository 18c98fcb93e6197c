"""Anchored interests: the whole interest of a user, and specialised ones that add to it what a part of the history
says.

Shape letters: B users, T packed events, Q users that are asked for, K interests, D width of tables, E of interests,
S targets, N negatives, C users of a chunk.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bseq_plugin.layers import ZeroLinear
from bseq_plugin.model.interests import RoutingPool, SelfAttentivePool
from bseq_plugin.schema.losses import Negatives, Targets
from bseq_plugin.schema.packed import PackedEvents

CHUNK_ELEMENTS = 1 << 21  # scores of a chunk, of all interests
SOFTNESS = 0.5  # of the largest score, in units of the score
SHARPER = 4.0  # first weights of events differ by a factor of e or so, where torch's would be all but even


class AnchoredInterests(nn.Module):
    """K interests of each user: ``[Q * K, E]``, those of a user one after the other.

    The first, the anchor, is the interest of ``interests.kind = "one"``. Each other one is the anchor plus ``W p_k``:
    ``p_k`` is pooled from the user's events, brought to length sqrt(D), and W begins at zero, so that all are the
    anchor at first. Events are pooled rather than states: a state of an encoder that sums up holds a little of
    everything, and states of one user are much alike.

    Gradients end at the anchor and at the events. The anchor, and with it every table and the encoder, is trained as if
    it were alone, and learns the same bit for bit; pool and W are trained by ``merged_softmax``.
    """

    def __init__(
        self, dim: int, interest_dim: int, n_interests: int, method: Literal["self_attention", "routing"]
    ) -> None:
        super().__init__()
        self.length = dim**0.5
        self.pool: SelfAttentivePool | RoutingPool
        if method == "self_attention":
            self.pool = SelfAttentivePool(dim, n_interests - 1)
            with torch.no_grad():
                self.pool.out.weight *= SHARPER
        else:
            self.pool = RoutingPool(dim, n_interests - 1)
        self.out = ZeroLinear(dim, interest_dim, bias=False)

    def forward(self, events: PackedEvents, anchor_QE: Tensor, rows_Q: Tensor | None = None) -> Tensor:
        """Return the interests of all users, or of those whose newest events are the packed rows ``rows_Q``."""
        x_TD = F.normalize(events.x_TD.detach(), dim=1) * self.length
        pooled_BKD = self.pool(events, x_TD)
        if isinstance(self.pool, RoutingPool):  # squashed to lengths below 1, where means are as long as events
            pooled_BKD = pooled_BKD * self.length
        added_BKE = self.out(pooled_BKD)
        added_QKE = added_BKE if rows_Q is None else added_BKE[events.user_T[rows_Q]]
        anchor_Q1E = anchor_QE[:, None]
        return torch.cat([anchor_Q1E, anchor_Q1E.detach() + added_QKE], 1).flatten(0, 1)


def merged_softmax(interests_QKE: Tensor, targets: Targets, negatives: Negatives) -> Tensor:
    """Return the softmax cross-entropy of the scores that retrieval ranks by: of each item the largest of a user's K,
    softened.

    Both targets and the items they are told apart from are scored so, as by Weston, Weiss and Yee ("Nonlinear Latent
    Factorization by Embedding Multiple User Interests", RecSys 2013): an interest that puts the wrong items
    forward is corrected even if it is no target's best. That keeps the interests' scores comparable, which a
    softmax for each interest alone does not: it leaves open how far one stands above another.

    The largest of scores s is ``SOFTNESS * log(sum(exp(s / SOFTNESS)))`` here. With the largest itself an interest that
    is below the anchor for every item, as it may be after a step or two, would never learn again.

    Differentiable in all interests but the first, and in nothing else. Several targets of a user share one
    distribution, and sampled negatives are corrected, as with ``SoftmaxLoss``. Weighted mean over targets; 0 without
    any. Memory is that of a chunk of users.
    """
    n_users, n_interests, _ = interests_QKE.shape
    if not len(targets.ids_S):
        return interests_QKE.sum() * 0.0
    vectors_NE, d_interests_QKE = negatives.vectors_ND.detach(), torch.zeros_like(interests_QKE)
    total = interests_QKE.new_zeros(())
    chunk = max(1, CHUNK_ELEMENTS // (n_interests * max(1, len(vectors_NE))))
    scale_S = targets.weights_S / targets.weights_S.sum()
    starts = torch.arange(0, n_users + chunk, chunk, device=interests_QKE.device)
    bounds = torch.searchsorted(targets.state_S, starts).tolist()
    for number, start in enumerate(range(0, n_users, chunk)):
        own = slice(bounds[number], bounds[number + 1])
        if own.start == own.stop:
            continue
        interests_CKE = interests_QKE[start : start + chunk].detach().requires_grad_()
        share = _chunk(interests_CKE, start, own, targets, negatives, vectors_NE, scale_S)
        # made here, so that no more than one chunk of scores is ever held
        d_interests_QKE[start : start + chunk] = torch.autograd.grad(share, interests_CKE)[0]
        total = total + share.detach()
    tied = (interests_QKE[:, 1:] * d_interests_QKE[:, 1:]).sum()
    return total + (tied - tied.detach())  # the value is that of the chunks, the gradient theirs


def _chunk(
    interests_CKE: Tensor,
    start: int,
    own: slice,
    targets: Targets,
    negatives: Negatives,
    vectors_NE: Tensor,
    scale_S: Tensor,
) -> Tensor:
    """Return the summed loss of the targets ``own`` of the users from ``start`` on."""
    state_S = targets.state_S[own] - start
    target_SE = targets.vectors_SD[own].detach()
    positive_SK = torch.einsum("ske,se->sk", interests_CKE[state_S], target_SE)
    positive_S = (positive_SK / SOFTNESS).logsumexp(1) * SOFTNESS
    merged_CN = (interests_CKE.transpose(0, 1) / SOFTNESS @ vectors_NE.T).logsumexp(0) * SOFTNESS
    if negatives.log_expected_count_N is None:  # the targets are among them
        log_total_C = merged_CN.logsumexp(1)
    else:
        hits_CN = _own_targets(state_S, targets.ids_S[own], len(interests_CKE), negatives.ids_N)
        merged_CN = (merged_CN - negatives.log_expected_count_N).masked_fill(hits_CN, -torch.inf)
        lowest = torch.finfo(merged_CN.dtype).min  # a user without any negative
        top_C = merged_CN.detach().amax(1).clamp_min(lowest).scatter_reduce(0, state_S, positive_S.detach(), "amax")
        total_C = (merged_CN - top_C[:, None]).exp().sum(1)
        total_C = total_C.index_add(0, state_S, (positive_S - top_C[state_S]).exp())
        log_total_C = total_C.log() + top_C
    return (scale_S[own] * (log_total_C[state_S] - positive_S)).sum()


def _own_targets(state_S: Tensor, ids_S: Tensor, n_users: int, ids_N: Tensor) -> Tensor:
    """Return bool [C, N], whether an item is a target of the user."""
    n_ids = int(torch.cat([ids_S, ids_N]).max()) + 1
    keys_CN = torch.arange(n_users, device=ids_N.device)[:, None] * n_ids + ids_N
    return torch.isin(keys_CN, state_S * n_ids + ids_S)
