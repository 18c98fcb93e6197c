"""Causal self-attention over the events of many users, in two views of a batch.

``TileView``: every event looks at its user's events up to itself. ``NewestView``: only each user's newest looks, which
is what serving wants. ``VarlenView`` is what ``TileView`` is, by a GPU's kernel.

Shape letters: T packed events, N cells, G lines of W cells, H heads, d width of a head; M events that are looked at
(N or T), R that look (N, or B users).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from bseq_plugin.encoders.packed.layout import Layout, Tile, lay_out
from bseq_plugin.encoders.packed.pairs import PairBias, PairFeatures, Pairs, newest_pairs, tile_pairs, user_pairs
from bseq_plugin.encoders.packed.varlen import VarlenView
from bseq_plugin.layers import dropout, softmax_by_group
from bseq_plugin.schema.packed import PackedEvents


@dataclass(frozen=True)
class TileView:
    """The view in which all events look: R = M = N cells."""

    layout: Layout
    pairs: tuple[Pairs, ...]

    @classmethod
    def of(cls, events: PackedEvents, features: PairFeatures, hidden_T: Tensor | None = None) -> TileView:
        """Lay out a batch once, for every block to read."""
        layout = lay_out(events)
        return cls(layout, tuple(tile_pairs(events, layout, tile, features, hidden_T) for tile in layout.tiles))

    @classmethod
    def both_ways(cls, events: PackedEvents) -> TileView:
        """Lay out a batch in which all events of a user look at all of them."""
        layout = lay_out(events)
        return cls(layout, tuple(user_pairs(events, layout, tile) for tile in layout.tiles))

    def queries(self, x_MD: Tensor) -> Tensor:
        """Return ``x_RD``, the events that look."""
        return x_MD

    def attend(self, q_RHd: Tensor, k_MHd: Tensor, v_MHd: Tensor, share: float) -> Tensor:
        """Return ``[R, H, d]``, the attended values; ``share`` of the attention weights is dropped."""
        tiles = zip(self.layout.tiles, self.pairs, strict=True)
        return _joined(
            [_attend_tile([x[tile.cells] for x in (q_RHd, k_MHd, v_MHd)], tile, p, share) for tile, p in tiles], q_RHd
        )

    def average(self, x_MD: Tensor) -> Tensor:
        """Return ``[R, D]``, the moving average up to each event."""
        outs = []
        for tile, pairs in zip(self.layout.tiles, self.pairs, strict=True):
            x_GWD = x_MD[tile.cells].view(tile.n_lines, tile.width, -1)
            outs.append((pairs.moving_average() @ x_GWD).flatten(0, 1))
        return _joined(outs, x_MD)


@dataclass(frozen=True)
class NewestView:
    """The view in which each user's newest event looks: M = T, R = B. Rows of users without events are arbitrary."""

    newest_B: Tensor
    user_T: Tensor
    pairs: Pairs

    @classmethod
    def of(cls, events: PackedEvents, features: PairFeatures, hidden_T: Tensor | None = None) -> NewestView:
        """Make the view of a batch that has at least one event."""
        return cls((events.offsets_B1[1:] - 1).clamp_min(0), events.user_T, newest_pairs(events, features, hidden_T))

    def queries(self, x_MD: Tensor) -> Tensor:
        """Return ``x_RD``, the events that look."""
        return x_MD.index_select(0, self.newest_B)

    def attend(self, q_RHd: Tensor, k_MHd: Tensor, v_MHd: Tensor, share: float) -> Tensor:
        """Return ``[R, H, d]``, the attended values; ``share`` of the attention weights is dropped."""
        if len(self.newest_B) == 1 and self.pairs.mask is None:  # serving one user: fewest calls
            q, k, v = (x.transpose(0, 1)[None] for x in (q_RHd, k_MHd, v_MHd))
            return F.scaled_dot_product_attention(q, k, v, dropout_p=share)[0].transpose(0, 1)
        weights_MH = self.weights(q_RHd, k_MHd)
        return self._sum(dropout(weights_MH, share, True)[..., None] * v_MHd)

    def weights(self, q_RHd: Tensor, k_MHd: Tensor) -> Tensor:
        """Return ``[M, H]``, the attention of each user's newest event to each event; it sums to 1 a user and head."""
        scores_MH = (q_RHd[self.user_T] * k_MHd).sum(2) * q_RHd.shape[2] ** -0.5
        if self.pairs.mask is not None:
            scores_MH = scores_MH + self.pairs.mask[:, None]
        return softmax_by_group(scores_MH, self.user_T, len(self.newest_B))

    def average(self, x_MD: Tensor) -> Tensor:
        """Return ``[R, D]``, the moving average up to each event."""
        weights_M1 = self.pairs.moving_average()[:, None]
        return self._sum(weights_M1 * x_MD) / self._sum(weights_M1).clamp_min(1e-30)

    def _sum(self, x_M: Tensor) -> Tensor:
        return x_M.new_zeros(len(self.newest_B), *x_M.shape[1:]).index_add(0, self.user_T, x_M)


OwnView = TileView | NewestView  # for arithmetic of ours
View = OwnView | VarlenView


def _attend_tile(qkv_nHd: list[Tensor], tile: Tile, pairs: Pairs, share: float) -> Tensor:
    """Return ``[G * W, H, d]``, the attended values of a tile."""
    n_heads, width = qkv_nHd[0].shape[1:]
    if pairs.mask is None:
        # One user a line, padding at the right, where no event of a causal mask can see it.
        q, k, v = (x.view(tile.n_lines, tile.width, n_heads, width).transpose(1, 2) for x in qkv_nHd)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=share)
        return out.transpose(1, 2).flatten(0, 1)
    # By hand: with dropout torch would take the same steps, and convert the mask in each of them.
    q, k, v = (x.view(tile.n_lines, tile.width, n_heads, width).permute(2, 0, 1, 3).flatten(0, 1) for x in qkv_nHd)
    mask = pairs.mask.expand(n_heads, *pairs.mask.shape).flatten(0, 1)
    weights = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=width**-0.5).softmax(-1)
    out = torch.bmm(dropout(weights, share, True), v)
    return out.view(n_heads, tile.n_lines, tile.width, width).permute(1, 2, 0, 3).flatten(0, 1)


def _joined(outs: list[Tensor], empty: Tensor) -> Tensor:
    """Return the tensors joined by rows; ``empty`` if there is none."""
    return outs[0] if len(outs) == 1 else torch.cat(outs) if outs else empty


def pointwise(view: OwnView, q_RHd: Tensor, k_MHd: Tensor, v_MHd: Tensor, bias: PairBias | None) -> Tensor:
    """Return ``[R, H, d]``, the sum of ``silu(q . k / sqrt(d) + bias) * v`` over the events that each event sees."""
    if isinstance(view, NewestView):
        return _newest(view, q_RHd, k_MHd, v_MHd, bias)
    tiles = zip(view.layout.tiles, view.pairs, strict=True)
    return _joined([_tile([x[tile.cells] for x in (q_RHd, k_MHd, v_MHd)], tile, p, bias) for tile, p in tiles], q_RHd)


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
