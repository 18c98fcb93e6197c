"""Losses over [states x candidates] logits that are never held at once.

Forward and gradients are made in the same pass, a chunk of states at a time, so that memory is
O(chunk * N + (Q + S + N) * D) whatever the number Q of states, S of targets and N of candidates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bseq_plugin.schema.parts import Candidates, Targets

CHUNK_ELEMENTS = 1 << 22  # logits of one chunk: 16 MiB in float32, inside the last-level cache of a server CPU

# (positive_S, weight_S, state_S, negative_CN) -> (loss, d loss / d positive_S) for the targets of a chunk of C states;
# state_S is the row of negative_CN a target belongs to. The weighted sum of losses is returned, and negative_CN is
# turned into d loss / d negative in place. An entry of -inf is not a candidate; its derivative must come out as 0.
LogitLoss = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def chunked_loss(logit_loss: LogitLoss, states_QD: Tensor, targets: Targets, candidates: Candidates) -> Tensor:
    """Weighted mean of ``logit_loss`` over S targets, differentiable in states, targets and candidate vectors.

    A state's own targets are struck from its candidates wherever they stand there; each counts once, as a positive.
    """
    if targets.ids_S.shape[0] == 0:
        return (states_QD.sum() + targets.vectors_SD.sum() + candidates.vectors_ND.sum()) * 0.0
    scale_S = targets.weights_S / targets.weights_S.sum()
    loss: Tensor = _ChunkedLoss.apply(  # type: ignore[no-untyped-call]
        states_QD, targets.vectors_SD, candidates.vectors_ND, targets, candidates, scale_S, logit_loss
    )
    return loss


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        states_QD: Tensor,
        target_SD: Tensor,
        vectors_ND: Tensor,
        targets: Targets,
        candidates: Candidates,
        scale_S: Tensor,
        logit_loss: LogitLoss,
    ) -> Tensor:
        n_states, n_candidates = states_QD.shape[0], vectors_ND.shape[0]
        chunk = max(1, min(n_states, CHUNK_ELEMENTS // max(1, n_candidates)))
        # one buffer for all chunks: fresh pages cost more than the arithmetic
        buffer_CN = states_QD.new_empty(chunk, n_candidates)
        d_states_QD, d_target_SD = torch.empty_like(states_QD), torch.empty_like(target_SD)
        d_vectors_ND = torch.zeros_like(vectors_ND)
        loss = states_QD.new_zeros(())
        bounds = torch.searchsorted(targets.state_S, torch.arange(0, n_states + chunk, chunk, device=states_QD.device))
        for number, start in enumerate(range(0, n_states, chunk)):
            queries = slice(start, min(start + chunk, n_states))
            own = slice(int(bounds[number]), int(bounds[number + 1]))  # targets of these states
            state_CD, positive_SD, state_S = states_QD[queries], target_SD[own], targets.state_S[own] - start
            negative_CN = torch.mm(state_CD, vectors_ND.T, out=buffer_CN[: state_CD.shape[0]])
            _prepare(negative_CN, candidates, state_S, targets.ids_S[own])
            query_SD = state_CD[state_S]
            chunk_loss, d_positive_S = logit_loss((query_SD * positive_SD).sum(1), scale_S[own], state_S, negative_CN)
            loss += chunk_loss
            torch.mm(negative_CN, vectors_ND, out=d_states_QD[queries])
            d_states_QD[queries].index_add_(0, state_S, d_positive_S[:, None] * positive_SD)
            torch.mul(d_positive_S[:, None], query_SD, out=d_target_SD[own])
            d_vectors_ND.addmm_(negative_CN.T, state_CD)
        ctx.save_for_backward(d_states_QD, d_target_SD, d_vectors_ND)
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        d_states_QD, d_target_SD, d_vectors_ND = ctx.saved_tensors
        return grad * d_states_QD, grad * d_target_SD, grad * d_vectors_ND, None, None, None, None


def _prepare(logits_CN: Tensor, candidates: Candidates, state_S: Tensor, target_ids_S: Tensor) -> None:
    """Apply logQ, and strike each state's own targets, in place."""
    if candidates.log_expected_count_N is None:  # a whole catalogue: every target stands there once
        logits_CN[state_S, torch.searchsorted(candidates.ids_N, target_ids_S)] = -torch.inf
        return
    logits_CN -= candidates.log_expected_count_N
    # sampled: the candidates that are a target of anybody in this chunk, then their (state, candidate) pairs
    order_N = candidates.ids_N.argsort()
    sorted_N = candidates.ids_N[order_N].contiguous()
    first_S = torch.searchsorted(sorted_N, target_ids_S)
    counts_S = torch.searchsorted(sorted_N, target_ids_S, right=True) - first_S
    rows = torch.repeat_interleave(state_S, counts_S)
    ends_S = counts_S.cumsum(0)
    within = torch.arange(rows.shape[0], device=rows.device) - torch.repeat_interleave(ends_S - counts_S, counts_S)
    logits_CN[rows, order_N[torch.repeat_interleave(first_S, counts_S) + within]] = -torch.inf
