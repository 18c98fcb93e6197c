"""Pointwise aggregated attention: a weight for each pair of events, not divided by the sum of the weights.

Shape letters as in ``attention``: T packed events, G lines of W cells, H heads, d width of a head; M events that are
looked at, R that look.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bseq_plugin.encoders.packed.attention import NewestView, OwnView, TileView
from bseq_plugin.encoders.packed.layout import Tile
from bseq_plugin.encoders.packed.pairs import PairBias, Pairs


def pointwise(view: OwnView, q_RHd: Tensor, k_MHd: Tensor, v_MHd: Tensor, bias: PairBias | None) -> Tensor:
    """Return ``[R, H, d]``, the sum of ``silu(q . k / sqrt(d) + bias) * v`` over the events that each event sees."""
    if isinstance(view, NewestView):
        return _newest(view, q_RHd, k_MHd, v_MHd, bias)
    outs = [_tile([x[tile.cells] for x in (q_RHd, k_MHd, v_MHd)], tile, pairs, bias) for tile, pairs in _tiles(view)]
    return torch.cat(outs) if outs else q_RHd


def _tiles(view: TileView) -> list[tuple[Tile, Pairs]]:
    return list(zip(view.layout.tiles, view.pairs, strict=True))


def _tile(qkv_nHd: list[Tensor], tile: Tile, pairs: Pairs, bias: PairBias | None) -> Tensor:
    n_heads, width = qkv_nHd[0].shape[1:]
    q, k, v = (x.view(tile.n_lines, tile.width, n_heads, width).permute(0, 2, 1, 3) for x in qkv_nHd)
    scores_GHWW = (q @ k.transpose(2, 3)) * width**-0.5
    bias_SH = None if bias is None else bias(pairs)
    if bias_SH is not None:
        scores_GHWW = scores_GHWW + bias_SH.view(-1, tile.width, tile.width, n_heads).permute(0, 3, 1, 2)
    if pairs.mask is None:  # one user a line, padding at the right
        weights_GHWW = F.silu(scores_GHWW).tril()
    else:
        weights_GHWW = F.silu(scores_GHWW).masked_fill(pairs.mask[:, None] != 0, 0.0)
    return (weights_GHWW @ v).permute(0, 2, 1, 3).flatten(0, 1)


def _newest(view: NewestView, q_BHd: Tensor, k_THd: Tensor, v_THd: Tensor, bias: PairBias | None) -> Tensor:
    scores_TH = (q_BHd[view.user_T] * k_THd).sum(2) * q_BHd.shape[2] ** -0.5
    bias_TH = None if bias is None else bias(view.pairs)
    weights_TH = F.silu(scores_TH if bias_TH is None else scores_TH + bias_TH)
    if view.pairs.mask is not None:
        weights_TH = weights_TH.masked_fill(view.pairs.mask[:, None] != 0, 0.0)
    return torch.zeros_like(q_BHd).index_add(0, view.user_T, weights_TH[..., None] * v_THd)
