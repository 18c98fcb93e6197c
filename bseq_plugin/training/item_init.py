"""Id rows that begin where the items' vectors say, instead of anywhere."""

from __future__ import annotations

import numpy as np
import torch

from bseq_plugin.data.prepare import PreparedLog
from bseq_plugin.model.interest_model import ITEM_WEIGHT
from bseq_plugin.training.sharding import ShardedTask

ITEM_KEY = f"interest_encoder.{ITEM_WEIGHT}"


@torch.no_grad()
def begin_with_vectors(sharded: ShardedTask, log: PreparedLog) -> None:
    """Put the ``dim`` first principal components of the items' vectors into the item table, at the scale of new rows;
    every member of an ensemble gets them.

    Items without a vector, and columns beyond the width of the vectors, keep what they have. Every rank fills its own
    shards; the components are computed on each, from the same vectors.
    """
    if log.item_vectors is None:
        return
    own_VC = principal_components(log.item_vectors.vectors_VE, log.recipe.dim)
    own_VC = np.pad(own_VC, ((0, 0), (0, log.recipe.dim - own_VC.shape[1])), constant_values=np.nan)
    components_VC = torch.from_numpy(np.tile(own_VC, log.recipe.members))
    components_VC *= log.recipe.table_init / components_VC[~components_VC.isnan()].std().clamp_min(1e-12)
    known_V = torch.from_numpy(log.item_vectors.vectors_VE.any(1))
    for shard in sharded.model.state_dict()[ITEM_KEY].local_shards():
        row, column = shard.metadata.shard_offsets
        rows = slice(row, row + len(shard.tensor))
        part = components_VC[rows, column : column + shard.tensor.shape[1]].to(shard.tensor.device)
        known_N1 = known_V[rows, None].to(shard.tensor.device)
        shard.tensor.copy_(torch.where(known_N1 & ~part.isnan(), part, shard.tensor))


def principal_components(vectors_VE: np.ndarray, n: int) -> np.ndarray:
    """float32 [V, min(n, E)], coordinates along the axes of largest variance among the vectors that are not zero."""
    known = vectors_VE.any(1)
    centred = vectors_VE[known].astype(np.float64)
    centred -= centred.mean(0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    found = np.zeros((len(vectors_VE), min(n, vectors_VE.shape[1])), np.float32)
    found[known] = centred @ axes[:, ::-1][:, : found.shape[1]]
    return found
