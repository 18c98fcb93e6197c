"""Items whose vectors lie beside those of the user's latest events.

Shape letters: B users, D width, Q distinct recent items, m neighbours.
"""

from __future__ import annotations

import numpy as np
import torch
from pydantic import Field
from torch.nn import functional as F

from bseq_plugin.candidate_sources.lists import candidates_of
from bseq_plugin.data import sparse
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
        recent = sparse.recent_matrix(
            inputs.histories, len(vectors_VD) - 1, self.options.last, self.options.decay
        ).tocsr()
        items_Q, places = np.unique(recent.indices, return_inverse=True)
        if not len(items_Q):
            return candidates_of(recent, k)
        units_QD = F.normalize(vectors_VD[torch.from_numpy(items_Q.astype(np.int64))], dim=1)
        n_neighbours = min(self.options.neighbours + 1, len(vectors_VD) - 1)  # one more: an item finds itself
        _, rows_Qm = inputs.search(units_QD, n_neighbours)
        vectors_QmD = F.normalize(vectors_VD[rows_Qm.clamp_min(0)], dim=2)
        cosines_Qm = torch.einsum("qd,qmd->qm", units_QD, vectors_QmD).clamp_min(0)
        cosines_Qm = cosines_Qm.masked_fill((rows_Qm < 1) | (rows_Qm == torch.from_numpy(items_Q)[:, None]), 0)
        asked = sparse.count_matrix(
            np.repeat(np.arange(recent.shape[0]), np.diff(recent.indptr)),
            places.ravel(),
            (recent.shape[0], len(items_Q)),
            recent.data,
        )
        near = sparse.count_matrix(
            np.repeat(np.arange(len(items_Q)), n_neighbours),
            rows_Qm.clamp_min(0).flatten().numpy(),
            (len(items_Q), len(vectors_VD)),
            cosines_Qm.flatten().numpy(),
        )
        return candidates_of((asked @ near).tocsr(), k)
