"""Features of pairs of events (the one that looks, the one that is looked at), beside their vectors.

Shape letters: T packed events, G lines of W cells, H heads, S any shape of pairs: [G, W, W] inside a tile, [T] for each
event seen from its user's newest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bseq_plugin.encoders.packed.layout import Layout, Tile
from bseq_plugin.errors import RecipeError
from bseq_plugin.schema.packed import PackedEvents

NEAR = 8  # distances below it have a bucket each, then two buckets for each doubling
N_TIME_BUCKETS = 33  # 0 s, then one for each doubling: 2 ** 31 s are 68 years
SECOND_US = 1_000_000


@dataclass(frozen=True)
class PairFeatures:
    """Which facts of a pair an encoder reads."""

    distance: bool = False
    time: bool = False
    half_life: float | None = None

    @property
    def none(self) -> bool:
        """Whether who sees whom is enough."""
        return not self.distance and not self.time and self.half_life is None


@dataclass(frozen=True)
class Pairs:
    """Features of pairs; None for those that no block reads.

    Attributes:
        mask: float, 0 where the first event sees the second, -inf elsewhere; None: all events up to its own.
        distance: int64, bucket of the number of events between; broadcasts to the shape of the mask.
        time: int64, bucket of the seconds between.
        average: float, weights of a moving average, each event's sum to 1.
    """

    mask: Tensor | None = None
    distance: Tensor | None = None
    time: Tensor | None = None
    average: Tensor | None = None

    def moving_average(self) -> Tensor:
        """Return ``average``. Raises ValueError if it was not asked for."""
        if self.average is None:
            raise ValueError("the pairs were made without a moving average: set PairFeatures.half_life")
        return self.average


class PairBias(nn.Module):
    """A learned number a head for each bucket of distance and of time, added to the scores of attention.

    Distance: Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", JMLR
    2020. Time: the relative attention bias of Zhai et al., "Actions Speak Louder than Words" (HSTU), ICML 2024. Both
    begin at zero.
    """

    def __init__(self, n_heads: int, n_distances: int, n_times: int) -> None:
        super().__init__()
        self.distance = nn.Parameter(torch.zeros(n_distances, n_heads)) if n_distances else None
        self.time = nn.Parameter(torch.zeros(n_times, n_heads)) if n_times else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set both tables to zero."""
        for table in self.parameters(recurse=False):
            nn.init.zeros_(table)

    def forward(self, pairs: Pairs) -> Tensor | None:
        """Return ``[S, H]``, the bias of each pair and head, or None without tables."""
        # A line may be wider than any history: pairs of two users have buckets beyond the table, behind the mask.
        parts = [
            nn.functional.embedding(bucket.clamp_max(len(table) - 1), table)
            for bucket, table in ((pairs.distance, self.distance), (pairs.time, self.time))
            if bucket is not None and table is not None
        ]
        return sum(parts[1:], parts[0]) if parts else None


def n_distance_buckets(max_length: int) -> int:
    """Return the number of buckets of the distances 0..max_length - 1."""
    largest = torch.tensor(max(max_length - 1, 0), device="cpu")  # whether the model is made on the meta device or not
    return int(distance_bucket(largest)) + 1


def distance_bucket(distance: Tensor) -> Tensor:
    """Return int64, the bucket of each distance: the distance itself below ``NEAR``, then half octaves."""
    far = NEAR + (2 * (distance.clamp_min(NEAR).double() / NEAR).log2()).floor().long()
    return torch.where(distance < NEAR, distance, far)


def time_bucket(between_us: Tensor) -> Tensor:
    """Return int64: 0 below a second (or for times out of order), else 1 + floor(log2(seconds)), at most 32."""
    seconds = (between_us // SECOND_US).clamp_min(0)
    return (1 + seconds.clamp_min(1).double().log2().floor().long()).clamp_max(N_TIME_BUCKETS - 1) * (seconds > 0)


def tile_pairs(
    events: PackedEvents, layout: Layout, tile: Tile, features: PairFeatures, hidden_T: Tensor | None
) -> Pairs:
    """Return the pairs [G, W, W] of a tile; ``hidden_T`` bool, events that only they themselves may see."""
    if tile.alone and features.none and hidden_T is None:
        return Pairs()
    shape = (tile.n_lines, tile.width)
    user_GW = layout.users(events.user_T)[tile.cells].view(shape)
    place_W = torch.arange(tile.width, device=user_GW.device)
    distance_WW = place_W[:, None] - place_W
    visible = (user_GW[:, :, None] == user_GW[:, None, :]) & (distance_WW >= 0)
    if hidden_T is not None:
        visible &= ~layout.spread(hidden_T)[tile.cells].view(shape)[:, None, :] | (distance_WW == 0)
    between = None
    if features.time:
        time_GW = layout.spread(_times(events))[tile.cells].view(shape)
        between = time_GW[:, :, None] - time_GW[:, None, :]
    return _facts(visible, distance_WW.clamp_min(0), between, features, events.x_TD.dtype)


def user_pairs(events: PackedEvents, layout: Layout, tile: Tile) -> Pairs:
    """Return the pairs [G, W, W] of a tile in which all events of a user see each other."""
    user_GW = layout.users(events.user_T)[tile.cells].view(tile.n_lines, tile.width)
    visible = user_GW[:, :, None] == user_GW[:, None, :]  # cells without an event see each other: no row sees nothing
    mask = torch.zeros(visible.shape, dtype=events.x_TD.dtype, device=visible.device)
    return Pairs(mask.masked_fill_(~visible, -torch.inf))


def newest_pairs(events: PackedEvents, features: PairFeatures, hidden_T: Tensor | None) -> Pairs:
    """Return the pairs [T], each event seen from its user's newest. ``average`` is not yet divided by its sum."""
    if features.none and hidden_T is None:
        return Pairs()
    visible_T = torch.ones_like(events.age_T, dtype=torch.bool) if hidden_T is None else ~hidden_T | (events.age_T == 0)
    between_T = None
    if features.time:
        times_T = _times(events)
        between_T = times_T[(events.offsets_B1[1:] - 1).clamp_min(0)][events.user_T] - times_T
    return _facts(visible_T, events.age_T, between_T, features, events.x_TD.dtype, divide=False)


def _facts(
    visible: Tensor,
    distance: Tensor,
    between: Tensor | None,
    features: PairFeatures,
    dtype: torch.dtype,
    divide: bool = True,
) -> Pairs:
    average = None
    if features.half_life is not None:
        average = torch.exp(distance.to(dtype) * (-math.log(2) / features.half_life)) * visible
        average = average / average.sum(-1, keepdim=True) if divide else average
    return Pairs(
        torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, -torch.inf),
        distance_bucket(distance) if features.distance else None,
        time_bucket(between) if between is not None else None,
        average,
    )


def _times(events: PackedEvents) -> Tensor:
    if events.timestamps_T is None:
        raise RecipeError(
            "encoder.relative_time_bias reads times, but the events have none; train on a log with times, or "
            "leave the option out"
        )
    return events.timestamps_T
