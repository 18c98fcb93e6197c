"""Validation through the sharded model: every rank encodes its share of the users, nothing is gathered but sums."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from bseq_plugin.data.batches import NEGATIVE, TARGET, history_features
from bseq_plugin.data.splits import EvaluationSet
from bseq_plugin.distributed import World
from bseq_plugin.events.sequences import Sequences
from bseq_plugin.metrics import ExcludedRuns, ranking_metrics, top_k_items
from bseq_plugin.model.encoder import SequenceInterestEncoder
from bseq_plugin.model.interest_model import EVENTS_PER_CALL
from bseq_plugin.model.items import score_vectors
from bseq_plugin.recipe.data import HeldOutSplit
from bseq_plugin.recipe.recipe import Recipe

ITEMS_PER_CALL = 1 << 19
USERS_PER_CALL = 1 << 11


@torch.no_grad()
def validate(
    encoder: SequenceInterestEncoder,
    evaluation: EvaluationSet,
    item_priors_VP: Tensor | None,
    n_items: int,
    recipe: Recipe,
    split: HeldOutSplit,
    here: World,
) -> dict[str, float]:
    """Return the means over all users of ``recall``, ``ndcg`` and ``mrr`` at the k of ``split.metric``.

    The encoder is the sharded one of a ``SequenceInterestTask``, detached from any pipeline. Collective: every rank
    calls it with the same evaluation set. ``item_priors_VP``: popularity columns as of the start of the validation.
    """
    k = int(split.metric.split("@")[1])
    own = np.array_split(np.arange(evaluation.n_users), here.size)[here.rank]
    own_histories = evaluation.histories.take(own)
    interests_BKD = sharded_interests(encoder, own_histories, recipe, here)
    excluded = (own_histories.offsets, own_histories.items) if split.mask_seen else None
    chunks = _score_vectors(encoder, item_priors_VP, n_items, recipe, evaluation.histories, here)
    top_UK = _top_of_chunks(interests_BKD, chunks, k, excluded)
    first, last = (int(own[0]), int(own[-1]) + 1) if len(own) else (0, 0)
    offsets = evaluation.target_offsets[first : last + 1]
    metrics = ranking_metrics(top_UK, offsets - offsets[0], evaluation.target_items[offsets[0] : offsets[-1]], [k])
    names = [f"{name}@{k}" for name in ("recall", "ndcg", "mrr")]
    sums = here.sum([float(metrics[name].sum()) for name in names])
    return {name: total / evaluation.n_users for name, total in zip(names, sums, strict=True)}


def item_chunks(
    encoder: SequenceInterestEncoder, n_items: int, recipe: Recipe, histories: Sequences, here: World
) -> Iterator[tuple[int, Tensor]]:
    """Yield (first row, rows [N, D] float32), looked up through the (sharded) collection. Collective.

    So no rank ever holds the whole table.
    """
    # A sharded collection takes the key order of its first input for granted, so this one has all the same keys:
    # one user of ``histories`` without events, whose negatives are the rows asked for.
    nothing = (np.empty(0, np.int64), np.zeros(1, np.int64))
    for start in range(0, n_items + 1, ITEMS_PER_CALL):
        rows = np.arange(start, min(start + ITEMS_PER_CALL, n_items + 1))
        asked = {TARGET: nothing, NEGATIVE: (rows, np.array([len(rows)]))}
        features = history_features(histories.nobody(), recipe, asked).to(here.device)
        looked_up = encoder.embedding_collection(features)
        yield start, encoder.item_tower(looked_up, features, [NEGATIVE])[0]


def _score_vectors(
    encoder: SequenceInterestEncoder,
    item_priors_VP: Tensor | None,
    n_items: int,
    recipe: Recipe,
    histories: Sequences,
    here: World,
) -> Iterator[tuple[int, Tensor]]:
    """Yield ``item_chunks`` as an interest is multiplied with them."""
    for first, rows_ND in item_chunks(encoder, n_items, recipe, histories, here):
        priors_NP = None if item_priors_VP is None else item_priors_VP[first : first + len(rows_ND)].to(here.device)
        yield first, score_vectors(rows_ND, priors_NP, recipe.vectors.cosine)


def _top_of_chunks(
    interests_BKD: Tensor, chunks: Iterator[tuple[int, Tensor]], k: int, excluded: ExcludedRuns | None
) -> np.ndarray:
    """Return ``top_k_items`` over all chunks: int64 [B, k], by score, then by row."""
    best: list[tuple[np.ndarray, Tensor]] = []
    for first, vectors_ND in chunks:
        if first:  # row 0 of what is ranked is never returned: only the first chunk has a row for that
            vectors_ND = torch.cat([vectors_ND.new_zeros(1, vectors_ND.shape[1]), vectors_ND])
        shift = max(first - 1, 0)
        rows_BK = top_k_items(interests_BKD, vectors_ND, k, _within(excluded, shift, len(vectors_ND)))
        best.append((np.where(rows_BK < 0, -1, rows_BK + shift), _scores(interests_BKD, vectors_ND, rows_BK)))
        if len(best) > 1:
            best = [_best(best, k)]
    return best[0][0]


def _scores(interests_BKD: Tensor, vectors_ND: Tensor, rows_BK: np.ndarray) -> Tensor:
    """Return ``[B, k]``, those of ``top_k_items``; -inf for no row. Some users at a time: vectors are copied."""
    scores_BK = interests_BKD.new_empty(rows_BK.shape)
    for start in range(0, len(rows_BK), USERS_PER_CALL):
        users = slice(start, start + USERS_PER_CALL)
        rows_bk = torch.from_numpy(rows_BK[users]).to(scores_BK.device)
        vectors_bkD = vectors_ND[rows_bk.clamp_min(0)]
        scores_bk = torch.einsum("bid,bkd->bik", interests_BKD[users], vectors_bkD).amax(1)
        scores_BK[users] = scores_bk.masked_fill_(rows_bk < 0, -torch.inf)
    return scores_BK


def _best(lists: list[tuple[np.ndarray, Tensor]], k: int) -> tuple[np.ndarray, Tensor]:
    """Return the k best of both lists; the first one has the smaller rows, and equal scores keep this order."""
    rows_BN = np.concatenate([rows for rows, _ in lists], axis=1)
    scores_BN, order = torch.cat([scores for _, scores in lists], dim=1).sort(dim=1, descending=True, stable=True)
    return np.take_along_axis(rows_BN, order.cpu().numpy(), axis=1)[:, :k], scores_BN[:, :k]


def _within(excluded: ExcludedRuns | None, shift: int, n_rows: int) -> ExcludedRuns | None:
    """Return the excluded rows of a chunk, numbered from its row ``shift`` on; row 0 is nobody's business."""
    if excluded is None:
        return None
    offsets, rows = excluded
    inside = (rows > shift) & (rows < shift + n_rows)
    kept = np.concatenate([[0], np.cumsum(inside)])
    return kept[offsets], rows[inside] - shift


def sharded_interests(encoder: SequenceInterestEncoder, histories: Sequences, recipe: Recipe, here: World) -> Tensor:
    """Return ``[U, K, D]`` of this rank's users. Collective: all ranks call the sharded encoder equally often."""
    histories = histories.latest(recipe.encoder.max_length)
    n_calls = max(here.gather(-(-histories.n_events // EVENTS_PER_CALL)), default=1)
    interests = []
    for users in np.array_split(np.arange(histories.n_users), max(1, n_calls)):
        asked = histories.take(users) if len(users) else histories.nobody()
        empty = (np.empty(0, np.int64), np.zeros(asked.n_users, np.int64))
        features = history_features(asked, recipe, {TARGET: empty, NEGATIVE: empty})
        interests.append(encoder(features.to(here.device)).values()[: len(users)])
    return torch.cat(interests).view(histories.n_users, recipe.interests_per_user, recipe.interest_dim)
