"""The candidate set of a batch."""

from __future__ import annotations

import numpy as np

from bseq_plugin.data.vocabulary import Vocabulary
from bseq_plugin.schema.recipe import Recipe


class CandidateSampler:
    """Draws the candidate set of a batch: the whole catalogue, or n negatives with replacement."""

    def __init__(self, vocabulary: Vocabulary, recipe: Recipe) -> None:
        self.n_items = vocabulary.n_items
        self.n_candidates = recipe.candidates
        counts = vocabulary.item_counts.astype(np.float64)
        weights = counts + 1.0 if recipe.sampling == "popularity" else np.ones_like(counts)
        self.probability = weights / weights.sum()

    def draw(
        self, catalogue: np.ndarray | None, rng: np.random.Generator, rank: int, world_size: int
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """(vocabulary rows int64 [N], log expected count float32 [N] or None for the whole catalogue).

        ``catalogue``: rows that may be drawn, ascending; None = all.
        """
        if self.n_candidates == "all":
            return np.arange(1, self.n_items + 1) if catalogue is None else catalogue, None
        probability = self.probability if catalogue is None else self.probability[catalogue - 1]
        cumulative = np.cumsum(probability)
        # every rank draws for all ranks and keeps its own, so that ranks differ and one seed rules them all
        draws = rng.random((world_size, self.n_candidates))[rank] * cumulative[-1]
        places = np.minimum(np.searchsorted(cumulative, draws, side="right"), len(cumulative) - 1)
        rows = places + 1 if catalogue is None else catalogue[places]
        log_count = np.log(self.n_candidates * probability[places] / cumulative[-1])
        return rows, log_count.astype(np.float32)
