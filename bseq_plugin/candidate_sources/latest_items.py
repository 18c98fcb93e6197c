"""Items that go with the user's latest ones: by their vectors, or by what follows them in everybody's histories.

Shape letters: B users, V items, D width, Q distinct recent items, m neighbours of an item, E edges.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from bseq_plugin.data import sparse
from bseq_plugin.events.sequences import Sequences
from bseq_plugin.schema.options import PartOptions
from bseq_plugin.schema.sources import CandidateSource, SourceCandidates, SourceInputs


class NeighbourOptions(PartOptions):
    """``last``: steps of a history that are asked, each ``decay`` times the one after. ``neighbours``: of each item."""

    last: int = Field(10, ge=1)
    decay: float = Field(0.7, gt=0, le=1)
    neighbours: int = Field(50, ge=1)


class ItemNeighbourSource(CandidateSource[NeighbourOptions]):
    """Cosines of item vectors, summed over the user's latest items. Neighbours are looked for by the served index, by
    inner product, and then weighed by the cosine, so that long vectors are not everybody's neighbours.
    """

    name = "item_neighbours"
    description = "items whose vectors lie beside those of the user's latest events"

    def find(self, inputs: SourceInputs, k: int) -> SourceCandidates:
        """Find candidates; see ``CandidateSource.find``."""
        vectors_VD = inputs.item_vectors_VD
        n_items, options = len(vectors_VD) - 1, self.options
        recent = sparse.recent_matrix(inputs.histories, n_items, options.last, options.decay).tocsr()
        items_Q, places = np.unique(recent.indices, return_inverse=True)
        if not len(items_Q):
            return candidates_of(recent, k)
        units_QD = F.normalize(vectors_VD[torch.from_numpy(items_Q.astype(np.int64))], dim=1)
        n_neighbours = min(options.neighbours + 1, n_items)  # one more: an item finds itself
        _, rows_Qm = inputs.search(units_QD, n_neighbours)
        vectors_QmD = F.normalize(vectors_VD[rows_Qm.clamp_min(0)], dim=2)
        cosines_Qm = torch.einsum("qd,qmd->qm", units_QD, vectors_QmD).clamp_min(0)
        cosines_Qm = cosines_Qm.masked_fill((rows_Qm < 1) | (rows_Qm == torch.from_numpy(items_Q)[:, None]), 0)
        users, rows = np.repeat(np.arange(recent.shape[0]), np.diff(recent.indptr)), rows_Qm.clamp_min(0).flatten()
        asked = sparse.count_matrix(users, places.ravel(), (recent.shape[0], len(items_Q)), recent.data)
        asking = np.repeat(np.arange(len(items_Q)), n_neighbours)
        shape = (len(items_Q), len(vectors_VD))
        near = sparse.count_matrix(asking, rows.numpy(), shape, cosines_Qm.flatten().numpy())
        return candidates_of((asked @ near).tocsr(), k)


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
        rows, items, weights = sparse.best_of_rows(graph, chosen.edges)
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


def candidates_of(matrix: sparse.Matrix, k: int) -> SourceCandidates:
    """Return the best ``k`` items of each row of [B, V + 1], with scores brought to 0..1 by the row's best."""
    users, items, values = sparse.best_of_rows(matrix, k)
    best = np.zeros(matrix.shape[0])
    np.maximum.at(best, users, values)
    kept = (values > 0) & (items > 0)
    users, items, values = users[kept], items[kept], values[kept]
    return SourceCandidates(
        torch.from_numpy(users.astype(np.int64)),
        torch.from_numpy(items),
        torch.from_numpy((values / best[users]).astype(np.float32)),
    )
