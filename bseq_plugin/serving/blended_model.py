"""A model with a blend, as a store would serve the two: how a blend is measured before anything is published.

Shape letters: U users, V items.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bseq_plugin.events.sequences import Sequences
from bseq_plugin.indexes.exact import ExactIndex
from bseq_plugin.model.interest_model import InterestModel
from bseq_plugin.schema.sources import CandidateSource
from bseq_plugin.serving.blend import Blend
from bseq_plugin.serving.filters import Filters
from bseq_plugin.serving.request import Request
from bseq_plugin.serving.sources import fitted_sources

USERS_PER_BLOCK = 4096  # whose candidates are in memory at one time


@dataclass(frozen=True)
class BlendedModel:
    """What a version of a store answers with, in memory, with the exact index (see ``Answering``)."""

    model: InterestModel
    blend: Blend
    sources: Mapping[str, CandidateSource]
    watermark_us: int | None = None

    @classmethod
    def fitted(cls, model: InterestModel, blend: Blend, known: Sequences) -> BlendedModel:
        """Return the model with the sources that the blend asks, fitted on ``known``. Raises as ``fitted_sources``."""
        return cls(model, blend, fitted_sources(blend.asked, known, model.vocabulary.n_items))

    @cached_property
    def index(self) -> ExactIndex:
        """Return the exact index over the item vectors."""
        return ExactIndex.build(self.model.item_vectors_VD[1:])

    @property
    def oracle(self) -> ExactIndex:
        """Return the same index."""
        return self.index

    @cached_property
    def popular_rows(self) -> np.ndarray:
        """Return the index rows of the items, most events first."""
        rows_V: np.ndarray = np.argsort(-self.model.vocabulary.item_counts, kind="stable")
        return rows_V

    @property
    def popular_counts(self) -> np.ndarray:
        """Return how many events they have."""
        counts_V: np.ndarray = self.model.vocabulary.item_counts[self.popular_rows]
        return counts_V

    def top(self, histories: Sequences, k: int, exclude_seen: bool, at_us: int | None = None) -> np.ndarray:
        """Return the k best items of each user: int64 [U, k] vocabulary rows, -1 where fewer may be shown."""
        top_Uk = np.full((histories.n_users, k), -1, np.int64)
        for start in range(0, histories.n_users, USERS_PER_BLOCK):
            users = np.arange(start, min(start + USERS_PER_BLOCK, histories.n_users))
            chosen = histories.take(users)
            no_filters = Filters().resolve(self.model.vocabulary, chosen.user_ids)
            hits = Request(self, chosen, exclude_seen, True, at_us, no_filters).answer(k).hits
            top_Uk[users[hits.users_N], hits.ranks() - 1] = hits.rows_N + 1
        return top_Uk
