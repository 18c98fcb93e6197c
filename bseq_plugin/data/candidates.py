"""The candidate set of a batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bseq_plugin.data.vocabulary import Vocabulary
from bseq_plugin.schema.recipe import Recipe


@dataclass(frozen=True)
class Drawn:
    """N candidates of a batch.

    Attributes:
        ids: int64 [N], vocabulary rows.
        log_expected_count: float32 [N], log of how often each is expected in the set; None for a whole catalogue.
        places: int64 [S], where each target stands in ``ids``, which then has no duplicates; or None.
    """

    ids: np.ndarray
    log_expected_count: np.ndarray | None = None
    places: np.ndarray | None = None


class CandidateSampler:
    """Draws the candidate set of a batch: the whole catalogue, n negatives with replacement, or a mixed set.

    A mixed set is the batch's own targets, each once and for certain, and n of the other items, drawn evenly without
    replacement: an estimate of the whole softmax in which nothing that the batch knows is left to chance. It needs no
    second look-up of the targets.
    """

    def __init__(self, vocabulary: Vocabulary, recipe: Recipe) -> None:
        self.n_items = vocabulary.n_items
        self.n_candidates = recipe.candidates
        self.mixed = recipe.sampling == "mixed"
        counts = vocabulary.item_counts.astype(np.float64)
        weights = counts + 1.0 if recipe.sampling == "popularity" else np.ones_like(counts)
        self.probability = weights / weights.sum()
        self._all = np.arange(1, self.n_items + 1)

    def draw(
        self, catalogue: np.ndarray | None, targets: np.ndarray, rng: np.random.Generator, rank: int, world_size: int
    ) -> Drawn:
        """The candidates of this rank's part of a batch.

        Args:
            catalogue: rows that may be drawn, ascending; None = all.
            targets: int64 [S], rows of ``catalogue``.
            rng: in the same state on every rank; ranks draw different negatives from it.
        """
        if self.n_candidates == "all":
            ids = self._all if catalogue is None else catalogue
            return Drawn(ids, places=np.searchsorted(ids, targets))
        if self.mixed:
            return self._mixed(self._all if catalogue is None else catalogue, targets, rng.spawn(world_size)[rank])
        probability = self.probability if catalogue is None else self.probability[catalogue - 1]
        cumulative = np.cumsum(probability)
        # every rank draws for all ranks and keeps its own, so that ranks differ and one seed rules them all
        draws = rng.random((world_size, self.n_candidates))[rank] * cumulative[-1]
        places = np.minimum(np.searchsorted(cumulative, draws, side="right"), len(cumulative) - 1)
        rows = places + 1 if catalogue is None else catalogue[places]
        log_count = np.log(self.n_candidates * probability[places] / cumulative[-1])
        return Drawn(rows, log_count.astype(np.float32))

    def _mixed(self, catalogue: np.ndarray, targets: np.ndarray, rng: np.random.Generator) -> Drawn:
        own, places = np.unique(targets, return_inverse=True)
        n_others = len(catalogue) - len(own)
        n_drawn = min(int(self.n_candidates), n_others)
        drawn = rng.choice(n_others, n_drawn, replace=False, shuffle=False)
        # the r-th item that is no target of the batch: skip the targets that stand before it
        before = np.searchsorted(catalogue, own) - np.arange(len(own))
        others = catalogue[drawn + np.searchsorted(before, drawn, side="right")]
        log_count = np.zeros(len(own) + n_drawn, np.float32)
        log_count[len(own) :] = np.log(n_drawn / max(n_others, 1)) if n_drawn else 0.0
        return Drawn(np.concatenate([own, others]), log_count, places)
