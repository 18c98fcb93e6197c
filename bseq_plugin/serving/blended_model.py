"""A model with a blend, as a store would serve the two: how a blend is measured before anything is published.

Shape letters: U users, V items.
"""

from __future__ import annotations

import numpy as np

from bseq_plugin.events.sequences import Sequences
from bseq_plugin.indexes.exact import ExactIndex
from bseq_plugin.model.interest_model import InterestModel
from bseq_plugin.serving.blend import Blend
from bseq_plugin.serving.candidates import Answering
from bseq_plugin.serving.filters import Filters
from bseq_plugin.serving.request import Request
from bseq_plugin.serving.sources import fitted_sources

USERS_PER_BLOCK = 4096  # whose candidates are in memory at one time


class BlendedModel(Answering):
    """What a version of a store answers with, in memory, with the exact index."""

    @classmethod
    def fitted(cls, model: InterestModel, blend: Blend, known: Sequences) -> BlendedModel:
        """Return the model with the sources that the blend asks, fitted on ``known``. Raises as ``fitted_sources``."""
        exact, counts_V = ExactIndex.build(model.item_vectors_VD[1:]), model.vocabulary.item_counts
        popular_rows = np.argsort(-counts_V, kind="stable")
        sources = fitted_sources(blend.asked, known, model.vocabulary.n_items)
        return cls(model, exact, exact, blend, sources, None, popular_rows, counts_V[popular_rows])

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
