"""What everybody likes, for users of whom little is known.

Shape letters: B users, V items.
"""

from __future__ import annotations

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from bseq_plugin.data import sparse
from bseq_plugin.events.sequences import Sequences
from bseq_plugin.schema.options import PartOptions
from bseq_plugin.schema.sources import CandidateSource, SourceCandidates, SourceInputs


class PopularityOptions(PartOptions):
    """``days``: events of the last so many days count; None, or a log without times: all. ``cold_events``: a user with
    so many known events gets half of the score, one with none all of it.
    """

    days: float | None = Field(28.0, gt=0)
    cold_events: float = Field(5.0, gt=0)


class PopularitySource(CandidateSource[PopularityOptions]):
    """``log1p(events) / log1p(most events)``, fading as the user's history grows. Equal counts: the lower row."""

    name = "popularity"
    description = "what everybody likes, for users of whom little is known"

    @classmethod
    def fit(cls, histories: Sequences, n_items: int, options: PopularityOptions | None = None) -> dict[str, Tensor]:
        """Return the items with events, most first, and their scores."""
        days = None if histories.timestamps is None else cls.checked_options(options).days
        counts = sparse.item_counts(histories, n_items, days)
        order = np.argsort(-counts, kind="stable")[: int((counts > 0).sum())]
        scores = np.log1p(counts[order]) / np.log1p(max(counts.max(initial=0), 1))
        return {
            "items": torch.from_numpy(order.astype(np.int64)),
            "scores": torch.from_numpy(scores.astype(np.float32)),
        }

    def find(self, inputs: SourceInputs, k: int) -> SourceCandidates:
        """Find candidates; see ``CandidateSource.find``."""
        items, scores = self.state["items"][:k], self.state["scores"][:k]
        n_users = inputs.histories.n_users
        lengths_B = torch.from_numpy(inputs.histories.lengths.astype(np.float32))
        share_B = 1 / (1 + lengths_B / self.options.cold_events)
        return SourceCandidates(
            torch.arange(n_users).repeat_interleave(len(items)),
            items.repeat(n_users),
            (share_B[:, None] * scores).flatten(),
        )
