"""Losses over [negatives x states] logits that are never held at once.

Forward and gradients are made in the same pass, a chunk of states at a time, so that memory is
O(chunk * N + (Q + S + N) * D) whatever the number Q of states, S of targets and N of negatives.

A chunk's logits are small enough for the last-level cache and lie in memory as their products are fast (``Products``).
Both matter: in float32 ``[states, candidates]`` in larger chunks takes half as long again (``make bench-head``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from bseq_plugin.losses.precision import Products, multiplies_in_bfloat16
from bseq_plugin.schema.losses import Negatives, Targets

CHUNK_ELEMENTS = 3 << 18  # logits of one chunk: 3 MiB in float32
CHUNK_STEP = 32  # chunks are multiples of it: whole vector registers for reductions over negatives

# (positive_S, weight_S, state_S, negative_NC) -> (loss, d loss / d positive_S, factor_C) for the targets of a chunk of
# C states; state_S is the column of negative_NC a target belongs to. The weighted sum of losses is returned, and
# negative_NC becomes, in place, d loss / d negative up to a factor a state: a factor on [N, C] would be one more pass
# over the largest array there is. An entry of -inf is no negative; its derivative must come out as 0.
Terms = tuple[Tensor, Tensor, Tensor]
LogitLoss = Callable[[Tensor, Tensor, Tensor, Tensor], Terms]


def chunked_loss(
    logit_loss: LogitLoss,
    states_QD: Tensor,
    targets: Targets,
    negatives: Negatives,
    matmul: str = "auto",
    narrow: bool = False,
) -> Tensor:
    """Return the weighted mean of ``logit_loss`` over S targets, differentiable in states, targets and negative
    vectors.

    A state's own targets are struck from its negatives wherever they stand there; each counts once, as a positive.
    Targets with ``places_S`` are read from the negatives, and their gradient goes there.

    Args:
        matmul: "float32", "bfloat16" (products with float32 sums) or "auto"; see ``multiplies_in_bfloat16``.
        narrow: ``logit_loss`` takes bfloat16 logits as well, as bfloat16 products leave them. A sample's logits are
            widened all the same: they are still to be corrected, and rounded twice.
    """
    if targets.ids_S.shape[0] == 0:
        return (states_QD.sum() + targets.vectors_SD.sum() + negatives.vectors_ND.sum()) * 0.0
    scale_S = targets.weights_S / targets.weights_S.sum()
    target_SD = targets.vectors_SD if targets.places_S is None else targets.vectors_SD.detach()
    loss: Tensor = _ChunkedLoss.apply(  # type: ignore[no-untyped-call]
        states_QD, target_SD, negatives.vectors_ND, targets, negatives, scale_S, logit_loss, matmul, narrow
    )
    return loss


def chunk_size(n_states: int, n_negatives: int, elements: int) -> int:
    """Return the states of a chunk: what fits ``elements`` logits, in even shares; a few for any catalogue's size."""
    most = max(CHUNK_STEP, elements // max(1, n_negatives) // CHUNK_STEP * CHUNK_STEP)
    share = -(-n_states // -(-n_states // most))
    return -(-share // CHUNK_STEP) * CHUNK_STEP


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        states_QD: Tensor,
        target_SD: Tensor,
        vectors_ND: Tensor,
        targets: Targets,
        negatives: Negatives,
        scale_S: Tensor,
        logit_loss: LogitLoss,
        matmul: str,
        narrow: bool,
    ) -> Tensor:
        n_states, n_negatives = states_QD.shape[0], vectors_ND.shape[0]
        bfloat16 = multiplies_in_bfloat16(vectors_ND, matmul)
        narrow = narrow and bfloat16 and negatives.log_expected_count_N is None
        # logits of 2 bytes leave room for more of them than of 4, or of 4 with a copy of 2; factors were measured
        chunk = chunk_size(n_states, n_negatives, CHUNK_ELEMENTS * (6 if narrow else 2 if bfloat16 else 1))
        products = Products.of(vectors_ND, chunk, bfloat16, narrow)
        # oneDNN compiles a kernel for each shape of a bfloat16 product and keeps it: a last chunk of any length would
        # be a new shape almost every step. States of zeros without targets fill it up.
        filled = -(-n_states // CHUNK_STEP) * CHUNK_STEP if bfloat16 else n_states
        states_QD = pad(states_QD, (0, 0, 0, filled - n_states))
        d_states_QD, d_target_SD = torch.empty_like(states_QD), torch.empty_like(target_SD)
        loss = states_QD.new_zeros(())
        bounds = torch.searchsorted(targets.state_S, torch.arange(0, filled + chunk, chunk, device=states_QD.device))
        for number, start in enumerate(range(0, filled, chunk)):
            queries = slice(start, min(start + chunk, filled))
            own = slice(int(bounds[number]), int(bounds[number + 1]))  # targets of these states
            state_CD, positive_SD, state_S = states_QD[queries], target_SD[own], targets.state_S[own] - start
            negative_NC = products.logits(state_CD)
            _prepare(negative_NC, negatives, state_S, targets, own)
            query_SD = state_CD.index_select(0, state_S)
            positive_S = (query_SD * positive_SD).sum(1)
            chunk_loss, d_positive_S, factor_C = logit_loss(positive_S, scale_S[own], state_S, negative_NC)
            loss += chunk_loss
            products.gradients(negative_NC, state_CD * factor_C[:, None], out=d_states_QD[queries], first=start == 0)
            d_states_QD[queries] *= factor_C[:, None]
            d_states_QD[queries].index_add_(0, state_S, d_positive_S[:, None] * positive_SD)
            torch.mul(d_positive_S[:, None], query_SD, out=d_target_SD[own])
        if targets.places_S is not None:
            products.d_vectors_ND.index_add_(0, targets.places_S, d_target_SD)
            d_target_SD = d_target_SD[:0]
        ctx.save_for_backward(d_states_QD[:n_states], d_target_SD, products.d_vectors_ND)
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        d_states_QD, d_target_SD, d_vectors_ND = ctx.saved_tensors
        if grad.device.type == "cpu" and bool(grad == 1.0):  # as in one process: no pass over [N, D]
            return d_states_QD, d_target_SD, d_vectors_ND, None, None, None, None, None, None
        d_targets = grad * d_target_SD if ctx.needs_input_grad[1] else None
        return grad * d_states_QD, d_targets, grad * d_vectors_ND, None, None, None, None, None, None


def _prepare(logits_NC: Tensor, negatives: Negatives, state_S: Tensor, targets: Targets, own: slice) -> None:
    """Apply logQ, and strike each state's own targets, in place."""
    if negatives.log_expected_count_N is not None:
        logits_NC -= negatives.log_expected_count_N[:, None]
    if targets.places_S is not None:
        logits_NC[targets.places_S[own], state_S] = -torch.inf
        return
    target_ids_S = targets.ids_S[own]
    if negatives.log_expected_count_N is None:  # a whole catalogue: every target stands there once
        logits_NC[torch.searchsorted(negatives.ids_N, target_ids_S), state_S] = -torch.inf
        return
    # sampled: the negatives that are a target of anybody in this chunk, then their (negative, state) pairs
    order_N = negatives.ids_N.argsort()
    sorted_N = negatives.ids_N[order_N].contiguous()
    first_S = torch.searchsorted(sorted_N, target_ids_S)
    counts_S = torch.searchsorted(sorted_N, target_ids_S, right=True) - first_S
    columns = torch.repeat_interleave(state_S, counts_S)
    ends_S = counts_S.cumsum(0)
    within = torch.arange(columns.shape[0], device=columns.device)
    within -= torch.repeat_interleave(ends_S - counts_S, counts_S)
    logits_NC[order_N[torch.repeat_interleave(first_S, counts_S) + within], columns] = -torch.inf
