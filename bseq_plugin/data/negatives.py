"""The negatives of a batch: what its targets are told apart from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bseq_plugin.data.batches import RandomNumbers
from bseq_plugin.events.vocabulary import Vocabulary
from bseq_plugin.recipe.objective import NegativeSettings


@dataclass(frozen=True)
class NegativeSample:
    """The N negatives of a batch, which may be the whole catalogue.

    Attributes:
        ids: int64 [N], vocabulary rows.
        log_expected_count: float32 [N], log of how often each is expected in the set; None for a whole catalogue.
        places: int64 [S], where each target stands in ``ids``, which then has no duplicates; or None.
    """

    ids: np.ndarray
    log_expected_count: np.ndarray | None = None
    places: np.ndarray | None = None


class NegativeSampler:
    """Draws the negatives of a batch: the whole catalogue, n items with replacement, or a mixed set.

    A mixed set is the batch's own targets, each once and for certain, and n of the other items, drawn evenly without
    replacement: an estimate of the whole softmax in which nothing that the batch knows is left to chance. It needs no
    second look-up of the targets.

    The set belongs to the global batch: every rank has the same one, so that the loss of a batch and the ``logQ`` of
    its negatives do not depend on how many ranks there are.
    """

    def __init__(self, vocabulary: Vocabulary, settings: NegativeSettings) -> None:
        self.n_items = vocabulary.n_items
        self.kind = settings.kind
        self.n = 0 if settings.kind == "all" else settings.n
        # arrays over the catalogue are made only where they are needed: it may have many millions of items
        self._weights = vocabulary.item_counts + 1.0 if settings.kind == "popularity" else None

    def draw(
        self, catalogue: np.ndarray | None, targets: np.ndarray, batch_targets: np.ndarray, random: RandomNumbers
    ) -> NegativeSample:
        """Return the negatives of a batch.

        Args:
            catalogue: rows that may be drawn, ascending; None = all.
            targets: int64 [S], rows of ``catalogue``, of this rank.
            batch_targets: int64, the targets of all ranks.
            random: the same numbers on every rank.
        """
        if self.kind == "all":
            if catalogue is None:
                return NegativeSample(self._all, places=targets - 1)
            return NegativeSample(catalogue, places=np.searchsorted(catalogue, targets))
        if self.kind == "mixed":
            return self._mixed(catalogue, targets, batch_targets, random().spawn(1)[0])
        n_rows = self.n_items if catalogue is None else len(catalogue)
        draws = random().random(self.n)
        if self._weights is None:
            places = (draws * n_rows).astype(np.int64)
            log_count = np.full(self.n, np.log(self.n / n_rows))
        else:
            cumulative = self._cumulative if catalogue is None else np.cumsum(self._weights[catalogue - 1])
            places = np.minimum(np.searchsorted(cumulative, draws * cumulative[-1], side="right"), n_rows - 1)
            weights = self._weights[places if catalogue is None else catalogue[places] - 1]
            log_count = np.log(self.n * weights / cumulative[-1])
        rows = places + 1 if catalogue is None else catalogue[places]
        return NegativeSample(rows, log_count.astype(np.float32))

    @cached_property
    def _all(self) -> np.ndarray:
        return np.arange(1, self.n_items + 1)

    @cached_property
    def _cumulative(self) -> np.ndarray:
        return np.cumsum(np.asarray(self._weights))

    def _mixed(
        self, catalogue: np.ndarray | None, targets: np.ndarray, batch_targets: np.ndarray, rng: np.random.Generator
    ) -> NegativeSample:
        own = np.unique(batch_targets)
        n_rows = self.n_items if catalogue is None else len(catalogue)
        n_others = n_rows - len(own)
        n_drawn = min(self.n, n_others)
        drawn = rng.choice(n_others, n_drawn, replace=False, shuffle=False)
        # the r-th item that is no target of the batch: skip the targets that stand before it
        before = (own - 1 if catalogue is None else np.searchsorted(catalogue, own)) - np.arange(len(own))
        places = drawn + np.searchsorted(before, drawn, side="right")
        others = places + 1 if catalogue is None else catalogue[places]
        log_count = np.zeros(len(own) + n_drawn, np.float32)
        log_count[len(own) :] = np.log(n_drawn / max(n_others, 1)) if n_drawn else 0.0
        return NegativeSample(np.concatenate([own, others]), log_count, np.searchsorted(own, targets))
