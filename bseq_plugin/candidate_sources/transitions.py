"""Items that follow the user's latest ones in everybody's histories.

Shape letters: B users, V items, S steps, m edges of an item.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from bseq_plugin.candidate_sources.lists import best_of_rows, candidates_of
from bseq_plugin.data import sparse
from bseq_plugin.events.sequences import Sequences
from bseq_plugin.schema.options import PartOptions
from bseq_plugin.schema.sources import CandidateSource, SourceCandidates, SourceInputs


class TransitionOptions(PartOptions):
    """``edges``: kept of each item. ``last``: steps of a history that are asked, each ``decay`` times the one after.
    ``popularity_power``: how much popular followers are held back.
    """

    edges: int = Field(100, ge=1)
    last: int = Field(10, ge=1)
    decay: float = Field(0.6, gt=0, le=1)
    popularity_power: float = Field(0.3, ge=0, le=1)


class TransitionSource(CandidateSource[TransitionOptions]):
    """The edges of the transition graph (``data.sparse.transition_graph``) from a user's last steps, summed."""

    name = "transitions"
    description = "items that follow the user's latest ones in everybody's histories"

    def __init__(self, state: Mapping[str, Tensor], options: TransitionOptions | None = None) -> None:
        super().__init__(state, options)
        starts, items, weights = (state[name].numpy() for name in ("starts", "items", "weights"))
        self._n_items = len(starts) - 2
        rows = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
        self._graph = sparse.count_matrix(rows, items, (len(starts) - 1, len(starts) - 1), weights)

    @classmethod
    def fit(cls, histories: Sequences, n_items: int, options: TransitionOptions | None = None) -> dict[str, Tensor]:
        """Return the strongest edges of each item: starts [V + 2], items [E], weights [E]."""
        chosen = cls.checked_options(options)
        graph = sparse.transition_graph(histories.known(), n_items, popularity_power=chosen.popularity_power)
        rows, items, weights = best_of_rows(graph, chosen.edges)
        starts = np.searchsorted(rows, np.arange(n_items + 2))
        return {
            "starts": torch.from_numpy(starts.astype(np.int64)),
            "items": torch.from_numpy(items),
            "weights": torch.from_numpy(weights.astype(np.float32)),
        }

    def find(self, inputs: SourceInputs, k: int) -> SourceCandidates:
        """Find candidates; see ``CandidateSource.find``."""
        recent = sparse.recent_matrix(inputs.histories, self._n_items, self.options.last, self.options.decay)
        return candidates_of((recent @ self._graph).tocsr(), k)
