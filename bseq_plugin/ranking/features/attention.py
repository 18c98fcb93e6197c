"""Target attention without parameters: the candidate attends to its user's history.

a_j = softmax_j(<e(h_j), e(c)> / 0.1) over events of known items; ``bseq_plugin.TargetAttention`` is the trained form.
Source: Zhou et al., Deep Interest Network, KDD 2018. Shape letters as in ``schema/ranking.py``, group letters as in
``schema/ranking_groups.py``.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bseq_plugin.ranking.features.history import HistoryFeature
from bseq_plugin.schema.grid import GRID
from bseq_plugin.schema.ranking import FeatureInputs
from bseq_plugin.schema.ranking_groups import RowGroup

TAU = 0.1


class AttentionFeature(HistoryFeature):
    """What the attention features share."""

    source = "Zhou et al., KDD 2018"

    def compute(self, inputs: FeatureInputs) -> Tensor:
        """float32 [N]; ``din_ctx``: [N, D]."""
        return torch.from_numpy(inputs.once(_attention)[self.name])


class DinAttnMax(AttentionFeature):
    """Whether one event alone explains the candidate."""

    name = "din_attn_max"
    description = "max_j a_j with a = softmax_j(<e(h_j), e(c)> / 0.1)"
    unit = "share in (0, 1]"


class DinAttnEntropy(AttentionFeature):
    """How many events explain the candidate."""

    name = "din_attn_entropy"
    description = "-sum_j a_j log a_j with a = softmax_j(<e(h_j), e(c)> / 0.1)"
    unit = "nats, 0 or more"


class DinCtx(AttentionFeature):
    """The history as the candidate sees it."""

    name = "din_ctx"
    description = "sum_j a_j e(h_j) with a = softmax_j(<e(h_j), e(c)> / 0.1), [D]"
    unit = ""


def _attention(inputs: FeatureInputs) -> dict[str, np.ndarray]:
    """float32 by name of the feature, NaN where there is nothing to attend to."""
    n_rows, dim = inputs.candidate_N.shape[0], inputs.item_vectors_VD.shape[1]
    largest_N, entropy_N = (np.full(n_rows, np.nan, np.float32) for _ in range(2))
    context_ND = np.full((n_rows, dim), np.nan, np.float32)
    for piece in inputs.pieces:
        total_gn, context_gnD = _attend(piece)
        # sum_j a_j <e(h_j), e(c)> = <ctx, e(c)>, which is exact, so the entropy needs no pass over the events
        attended_gn = np.einsum("gnd,gnd->gn", context_gnD, piece.candidates_gnD)
        entropy_gn = np.log(total_gn) - (attended_gn - piece.largest_gn) / TAU
        piece.put(1 / total_gn, largest_N)
        piece.put(np.maximum(entropy_gn, 0.0), entropy_N)
        piece.put(context_gnD, context_ND)
    return {"din_attn_max": largest_N, "din_attn_entropy": entropy_N, "din_ctx": context_ND}


def _attend(group: RowGroup) -> tuple[np.ndarray, np.ndarray]:
    """(sum of exp((cosine - largest) / tau) [g, n], context [g, n, D] on the grid), float64."""
    # torch's threads share all passes but the exponential, which torch may round by an element's place in memory
    weights_gnL = torch.from_numpy(group.cosine_gnL) - torch.from_numpy(group.largest_gn)[..., None]
    weights_gnL *= 1 / TAU
    np.exp(weights_gnL.numpy(), out=weights_gnL.numpy())
    # weights as whole numbers: products with vectors of the grid then add up exactly, in any order
    weights_gnL *= torch.from_numpy(group.scale_g.astype(np.float32))[:, None, None]
    wide_gnL = weights_gnL.round_().double()
    total_gn1 = wide_gnL.sum(2, keepdim=True)
    context_gnD = torch.matmul(wide_gnL, torch.from_numpy(group.events_gLD))
    context_gnD *= 1 / (total_gn1 * GRID)
    context_gnD.round_().mul_(GRID)
    return total_gn1[..., 0].numpy() / group.scale_g[:, None], context_gnD.numpy()
