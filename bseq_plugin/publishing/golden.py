"""Golden queries: a few real ones with their true answers, stored with a version and repeated before it is served.

Shape letters: N users, K interests, D width, G golden queries, V items.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from bseq_plugin.indexes.exact import ExactIndex
from bseq_plugin.model.interest_model import InterestModel
from bseq_plugin.publishing.history_parts import spread
from bseq_plugin.publishing.measure import recall
from bseq_plugin.schema.indexes import VectorIndex

N_GOLDEN, GOLDEN_K = 16, 10


def golden_queries(
    model: InterestModel, index: VectorIndex, places: np.ndarray, interests_NKD: Tensor
) -> dict[str, Any]:
    """Return real queries with their true answers, and what the index finds of them; readers repeat them first.

    Args:
        places: int64 [N], where the users stand in the version's histories.
        interests_NKD: theirs.
    """
    chosen = spread(np.arange(len(places)), N_GOLDEN)
    users, queries_GD = places[chosen], interests_NKD[torch.from_numpy(chosen), 0]
    vectors_VD = model.item_vectors_VD[1:]
    k = min(GOLDEN_K, len(vectors_VD))
    scores_Gk, rows_Gk = ExactIndex.build(vectors_VD).search(queries_GD, k)
    _, found_Gk = index.search(queries_GD, k)
    return {
        "users": users.tolist(),
        "queries": queries_GD.tolist(),
        "k": k,
        "item_ids": [model.vocabulary.item_ids[rows].tolist() for rows in rows_Gk.numpy()],
        "scores": scores_Gk.tolist(),
        "recall": recall(found_Gk, rows_Gk),
    }
