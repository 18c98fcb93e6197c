"""Validation through the sharded model: every rank encodes its share of the users, nothing is gathered but sums."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bseq_plugin.data.batches import NEGATIVE, TARGET, history_features
from bseq_plugin.data.sequences import Sequences
from bseq_plugin.data.splits import EvaluationSet
from bseq_plugin.metrics import ranking_metrics, top_k_items
from bseq_plugin.model.encoder import SequenceInterestEncoder
from bseq_plugin.model.interest_model import EVENTS_PER_CALL
from bseq_plugin.model.items import score_vectors
from bseq_plugin.schema.recipe import Recipe
from bseq_plugin.training.distributed import World

ITEMS_PER_CALL = 1 << 20


@torch.no_grad()
def validate(
    encoder: SequenceInterestEncoder,
    evaluation: EvaluationSet,
    item_priors_VP: Tensor | None,
    n_items: int,
    recipe: Recipe,
    here: World,
) -> dict[str, float]:
    """Means over all users of ``recall``, ``ndcg`` and ``mrr`` at the k of ``recipe.validation_metric``.

    The encoder is the sharded one of a ``SequenceInterestTask``, detached from any pipeline. Collective: every rank
    calls it with the same evaluation set. ``item_priors_VP``: popularity columns as of the start of the validation.
    """
    k = int(recipe.validation_metric.split("@")[1])
    rows_VD = item_rows(encoder, n_items, recipe, evaluation.histories, here)
    priors_VP = None if item_priors_VP is None else item_priors_VP.to(here.device)
    items_VD = score_vectors(rows_VD, priors_VP, recipe.score == "cosine")
    own = np.array_split(np.arange(evaluation.n_users), here.size)[here.rank]
    interests_BD = _interests(encoder, evaluation, own, recipe, here)
    own_histories = evaluation.histories.take(own)
    excluded = (own_histories.offsets, own_histories.items) if recipe.mask_seen else None
    top_UK = top_k_items(interests_BD, items_VD, k, excluded)
    first, last = (int(own[0]), int(own[-1]) + 1) if len(own) else (0, 0)
    offsets = evaluation.target_offsets[first : last + 1]
    metrics = ranking_metrics(top_UK, offsets - offsets[0], evaluation.target_items[offsets[0] : offsets[-1]], [k])
    names = [f"{name}@{k}" for name in ("recall", "ndcg", "mrr")]
    sums = here.sum([float(metrics[name].sum()) for name in names])
    return {name: total / evaluation.n_users for name, total in zip(names, sums, strict=True)}


def item_rows(
    encoder: SequenceInterestEncoder, n_items: int, recipe: Recipe, histories: Sequences, here: World
) -> Tensor:
    """``[V + 1, D]`` float32, looked up through the (sharded) collection. Collective."""
    # A sharded collection takes the key order of its first input for granted, so this one has all the same keys:
    # one user of ``histories`` without events, whose negatives are the rows asked for.
    nobody = histories.slices(np.zeros(1, np.int64), np.zeros(1, np.int64), np.zeros(1, np.int64))
    nothing = (np.empty(0, np.int64), np.zeros(1, np.int64))
    chunks = []
    for start in range(0, n_items + 1, ITEMS_PER_CALL):
        rows = np.arange(start, min(start + ITEMS_PER_CALL, n_items + 1))
        asked = {TARGET: nothing, NEGATIVE: (rows, np.array([len(rows)]))}
        features = history_features(nobody, recipe.event_features, asked).to(here.device)
        looked_up = encoder.embedding_collection(features)
        chunks.append(encoder.item_tower(looked_up, features, [NEGATIVE])[0])
    return torch.cat(chunks)


def _interests(
    encoder: SequenceInterestEncoder, evaluation: EvaluationSet, own: np.ndarray, recipe: Recipe, here: World
) -> Tensor:
    """``[len(own), D]``. Every rank makes the same number of collective calls, however its users are spread."""
    histories = evaluation.histories.latest(recipe.max_length)
    n_calls = max(here.gather(-(-int(histories.lengths[own].sum()) // EVENTS_PER_CALL)), default=1)
    interests = []
    for users in np.array_split(own, max(1, n_calls)):
        asked = users if len(users) else np.zeros(1, np.int64)  # a rank without users takes part all the same
        empty = (np.empty(0, np.int64), np.zeros(len(asked), np.int64))
        features = history_features(histories.take(asked), recipe.event_features, {TARGET: empty, NEGATIVE: empty})
        interests.append(encoder(features.to(here.device)).values()[: len(users)])
    return torch.cat(interests)
