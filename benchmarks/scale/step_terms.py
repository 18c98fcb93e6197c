"""What a rank does in a training step, counted from its shape: FLOPs, rows, bytes and messages.

Letters: V items, T events of a global batch, N candidates, R ranks, D width.
"""

from __future__ import annotations

import math
from typing import Any

DIM, BLOCKS, FEED_FORWARD, LENGTH = 64, 2, 256, 25
CACHE_BYTES = 32 * 2**20  # beyond it, rows of the item table come from memory
TERMS = ("step", "messages", "encoder_flops", "head_flops", "row_bytes", "sent_bytes")


def terms(point: dict[str, Any]) -> dict[str, float]:
    """What a rank does in a step: counted, not measured.

    step: 1; messages: collectives of a step on several ranks; encoder_flops, head_flops: matrix products, forward and
    twice backward, small and large ones, whose activations and scores grow with them; row_bytes: table rows from
    memory (looked up, and twice for the update), after the share that Zipf's law keeps in the cache; sent_bytes: rows
    and their gradients to other ranks.
    """
    n_items, n_events, n_candidates, ranks = (point[name] for name in ("items", "events", "candidates", "ranks"))
    dim, own = point.get("dim", DIM), n_events / ranks
    dense = BLOCKS * (8 * dim**2 + 4 * dim * FEED_FORWARD * dim / DIM + 4 * LENGTH * dim)
    rows = 2 * own + n_candidates  # events, targets, candidates
    cached = CACHE_BYTES / (4 * (dim + 1)) * ranks
    missed = max(0.0, 1 - math.log(max(cached, 2)) / math.log(n_items)) if n_items > cached else 0.0
    return {
        "step": 1.0,
        "messages": float(ranks > 1),
        "encoder_flops": 3 * own * dense,
        "head_flops": 3 * own * 2 * n_candidates * dim,
        "row_bytes": 3 * 4 * (dim + 1) * (2 * own * missed + n_candidates * (n_items > cached)),
        "sent_bytes": 2 * 4 * dim * rows * (ranks - 1) / ranks,
    }
