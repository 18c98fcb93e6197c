"""Rankers: what is measured. A baseline or a model becomes one with a helper of this file.

Shape letters: U users, b users of one block, K interests, V items (row 0 = unknown), D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from torch import Tensor

from bseq_plugin.data.sequences import Sequences
from bseq_plugin.evaluation.baselines import Baseline
from bseq_plugin.metrics import MAX_BLOCK_SCORES, top_k_items, top_k_scores

# a baseline holds a sparse product beside the dense block, so that its blocks are smaller than a model's
MAX_BASELINE_USERS = 256

# (histories of U users, k, mask seen items?) -> int64 [U, k] vocabulary rows, best first, -1 = nothing left
Ranker = Callable[[Sequences, int, bool], np.ndarray]


def baseline_ranker(baseline: Baseline, n_items: int) -> Ranker:
    """A fitted baseline as a ``Ranker``; scores exist for one block of users at a time."""
    block = max(1, min(MAX_BASELINE_USERS, MAX_BLOCK_SCORES // (n_items + 1)))

    def rank(histories: Sequences, k: int, mask_seen: bool) -> np.ndarray:
        excluded = (histories.offsets, histories.items) if mask_seen else None

        def score_block(users: slice) -> Tensor:
            return baseline.scores(histories.take(np.arange(users.start, users.stop)))

        return top_k_scores(score_block, histories.n_users, k, excluded, block)

    return rank


class InterestScorer(Protocol):
    """The part of an ``InterestModel`` that ranking needs."""

    @property
    def item_vectors_VD(self) -> Tensor:
        """float32 [V + 1, D]."""

    def encode(self, histories: Sequences) -> Tensor:
        """``interests_BKD`` float32."""


def interest_ranker(model: InterestScorer) -> Ranker:
    """The model's interest vectors alone: an item's score is its largest inner product with an interest."""

    def rank(histories: Sequences, k: int, mask_seen: bool) -> np.ndarray:
        excluded = (histories.offsets, histories.items) if mask_seen else None
        return top_k_items(model.encode(histories), model.item_vectors_VD, k, excluded)

    return rank
