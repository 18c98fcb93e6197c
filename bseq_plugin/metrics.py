"""Whole-catalogue top-k and ranking metrics; used by training (validation) and by evaluation.

Shape letters: B users asked about, b users of one block, V items (row 0 is the unknown item), D width, K interests,
U users evaluated, N targets or exclusions in all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from bseq_plugin.errors import UsageError

# Scores held at one time: 64 MB in float32, whatever the catalogue.
MAX_BLOCK_SCORES = 16_000_000
# 4 MB: what stays in the last-level cache from the matrix product to the top k. A large catalogue takes more, because
# with too few users the product would do nothing but read the item vectors.
CACHED_BLOCK_SCORES = 1_000_000
MIN_BLOCK_USERS = 64
# Groups of fewer rows don't repay the second look.
MIN_GROUP_ROWS = 4
# (offsets int64 [B + 1], vocabulary rows int64 [N]): the rows that must not be returned, one run a user
ExcludedRuns = tuple[np.ndarray, np.ndarray]


def top_k_items(
    queries_BD: Tensor, item_vectors_VD: Tensor, k: int, excluded: ExcludedRuns | None = None, block: int | None = None
) -> np.ndarray:
    """The k items of largest inner product for each user, best first.

    Args:
        queries_BD: float [B, D], or [B, K, D] for K interests a user: an item's score is its largest.
        item_vectors_VD: float [V + 1, D]; row 0, the unknown item, is never returned.
        k: how many, 1 or more.
        excluded: rows that must not be returned for each user.
        block: users scored at once; by default as many as fit the processor's cache.

    Returns:
        int64 [B, k] vocabulary rows; equal scores: the smaller row first; -1 where fewer than k items are left.

    Raises:
        UsageError: see ``top_k_scores``.
    """
    n_users, n_rows = queries_BD.shape[0], item_vectors_VD.shape[0]
    n_interests = queries_BD.shape[1] if queries_BD.dim() == 3 else 1
    if block is None:
        block = _block_users(n_rows * n_interests)
    items_DV = item_vectors_VD.T
    # one buffer for all blocks: fresh memory costs page faults, and would not be in the cache
    score_QV = item_vectors_VD.new_empty(min(block, n_users) * n_interests, n_rows)

    def score_block(users: slice) -> Tensor:
        queries_QD = queries_BD[users].reshape(-1, item_vectors_VD.shape[1])
        product_QV = torch.mm(queries_QD, items_DV, out=score_QV[: len(queries_QD)])
        return product_QV if n_interests == 1 else product_QV.view(-1, n_interests, n_rows).amax(1)

    with torch.no_grad():
        return top_k_scores(score_block, n_users, k, excluded, block)


def _block_users(scores_per_user: int) -> int:
    """Users scored at once: a block that fits the cache, but no fewer than ``MIN_BLOCK_USERS`` if memory allows it."""
    cached = max(MIN_BLOCK_USERS, CACHED_BLOCK_SCORES // max(1, scores_per_user))
    return max(1, min(cached, MAX_BLOCK_SCORES // max(1, scores_per_user)))


def top_k_scores(
    score_block: Callable[[slice], Tensor], n_users: int, k: int, excluded: ExcludedRuns | None, block: int
) -> np.ndarray:
    """``top_k_items`` for any way to score a block of users.

    Args:
        score_block: users start..stop -> float [b, V + 1]. -inf means "never"; the tensor may be overwritten.
        n_users: B.
        k: how many, 1 or more.
        excluded: rows that must not be returned for each user.
        block: users scored at once.

    Returns:
        int64 [B, k] as ``top_k_items``.

    Raises:
        UsageError: if ``k`` or ``block`` is below 1, ``excluded`` does not fit, or a score is not a number.
    """
    if k < 1 or block < 1:
        raise UsageError(f"k = {k}, block = {block}; give 1 or more")
    if excluded is not None and (len(excluded[0]) != n_users + 1 or excluded[0][-1] > len(excluded[1])):
        raise UsageError(f"excluded has offsets for {len(excluded[0]) - 1} users, but {n_users} are ranked")
    top_BK = np.full((n_users, k), -1, dtype=np.int64)
    for start in range(0, n_users, block):
        users = slice(start, min(start + block, n_users))
        score_bV = score_block(users).contiguous()
        score_bV[:, 0] = -torch.inf
        if excluded is not None:
            _exclude(score_bV, excluded, users)
        best_bk, rows_bk = _top_rows(score_bV, min(k, score_bV.shape[1]))
        if torch.isnan(best_bk[:, :1]).any():  # NaN is sorted above all numbers: the first place tells
            raise UsageError(f"scores of users {start}..{users.stop - 1} are not numbers (NaN); did training diverge?")
        top_BK[users, : rows_bk.shape[1]] = rows_bk.cpu().numpy()
    return top_BK


def _exclude(score_bV: Tensor, excluded: ExcludedRuns, users: slice) -> None:
    offsets = excluded[0][users.start : users.stop + 1]
    rows = np.asarray(excluded[1][offsets[0] : offsets[-1]], dtype=np.int64)
    if len(rows) and (rows.max() >= score_bV.shape[1] or rows.min() < 0):
        raise UsageError(f"excluded has row {rows.max()}; this catalogue has rows 0..{score_bV.shape[1] - 1}")
    places = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets)) * score_bV.shape[1] + rows
    score_bV.view(-1).index_fill_(0, torch.from_numpy(places).to(score_bV.device), -torch.inf)


def _top_rows(score_bV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Scores [b, k], best first, and int64 [b, k] rows: by score, then by row; -1 for a score of -inf."""
    rows_bk = _best_rows(score_bV, k)
    top_bk, order = score_bV.gather(1, rows_bk).sort(dim=1, descending=True, stable=True)
    return top_bk, rows_bk.gather(1, order).masked_fill_(top_bk == -torch.inf, -1)


def _best_rows(score_bV: Tensor, k: int) -> Tensor:
    """int64 [b, k], ascending: as ``_best_by_topk``, which reads every score several times where this reads it once.

    The rows are cut into groups. The k groups of largest maxima hold the k best rows: any other row has k maxima
    before it, larger or equal ones of smaller rows. Groups of sqrt(V / k) rows make both looks equally long.
    """
    n_rows = score_bV.shape[1]
    size = math.isqrt(n_rows // k)
    if size < MIN_GROUP_ROWS:
        return _best_by_topk(score_bV, k)
    whole = n_rows - n_rows % size
    maxima_bG = score_bV[:, :whole].view(len(score_bV), -1, size).amax(2)
    groups_bk = _best_by_topk(maxima_bG, k)
    inside = torch.arange(size, device=score_bV.device)
    grouped = (groups_bk[:, :, None] * size + inside).flatten(1)
    # the last rows, too few for a group, are always looked at
    rest = torch.arange(whole, n_rows, device=score_bV.device).expand(len(score_bV), -1)
    candidates_bC = torch.cat([grouped, rest], dim=1)  # ascending, so that ties go to the smaller row
    return candidates_bC.gather(1, _best_by_topk(score_bV.gather(1, candidates_bC), k))


def _best_by_topk(score_bN: Tensor, k: int) -> Tensor:
    """int64 [b, k], ascending: columns of the k largest scores, of equal ones the smaller columns; any for -inf.

    ``torch.topk`` leaves open which of several equal scores it takes. Only for users with a tie across the border
    (seen by asking for one more) are the tied columns counted out.
    """
    more = score_bN.topk(min(k + 1, score_bN.shape[1]), dim=1)
    columns = more.indices[:, :k]
    if more.values.shape[1] > k:
        last = more.values[:, k - 1]
        tied = torch.nonzero((last == more.values[:, k]) & (last > -torch.inf)).flatten()
        if len(tied):
            columns = columns.clone()
            columns[tied] = _columns_with_ties(score_bN[tied], last[tied, None], k)
    return columns.sort(dim=1).values


def _columns_with_ties(score_bN: Tensor, last_b1: Tensor, k: int) -> Tensor:
    """int64 [b, k]: all columns above ``last`` (NaN is), filled up with the smallest that equal it."""
    above, equal = ~(score_bN <= last_b1), score_bN == last_b1
    missing = k - above.sum(1, keepdim=True)
    chosen = above | (equal & (equal.cumsum(1, dtype=torch.int32) <= missing))
    return chosen.nonzero()[:, 1].view(-1, k)


def ranking_metrics(
    top_UK: np.ndarray, target_offsets: np.ndarray, target_items: np.ndarray, ks: Sequence[int]
) -> dict[str, np.ndarray]:
    """Metrics of each user, so that means, intervals and paired differences can be taken of them.

    With h_r = 1 if the item at place r (from 1) is a target, else 0, and n targets:

    - ``recall@k`` = sum of h_r over r <= k, divided by min(k, n): 1 is always within reach. With one target (leave one
      out) and for n <= k it is the plain recall.
    - ``ndcg@k`` = sum of h_r / log2(r + 1) over r <= k, divided by the same sum for min(k, n) hits in front.
    - ``mrr@k`` = 1 / r of the first hit with r <= k, else 0.
    - ``hit@k`` = 1 if there is a hit with r <= k, else 0.

    Args:
        top_UK: int64 [U, K] rows, best first, without repeats; -1 = nothing.
        target_offsets: int64 [U + 1].
        target_items: int64 [N], distinct within a user.
        ks: cut-offs, each between 1 and K.

    Returns:
        "metric@k" -> float64 [U], in the order of ``ks``.

    Raises:
        UsageError: if shapes disagree, a user has no target, or a cut-off is out of range.
    """
    counts = np.diff(target_offsets)
    if len(top_UK) != len(counts) or not (counts > 0).all():
        raise UsageError(
            f"{len(top_UK)} users are ranked and {int((counts > 0).sum())} of {len(counts)} have targets; both must be "
            "the same users, each with a target"
        )
    if not ks or min(ks) < 1 or max(ks) > top_UK.shape[1]:
        raise UsageError(f"ks = {list(ks)}; cut-offs lie between 1 and the {top_UK.shape[1]} ranked places")
    hit_UK = _is_target(top_UK, counts, target_items)
    place = np.arange(1, top_UK.shape[1] + 1)
    gain_K = 1.0 / np.log2(place + 1.0)
    ideal_K = np.cumsum(gain_K)
    first_U = np.where(hit_UK.any(1), hit_UK.argmax(1) + 1, np.iinfo(np.int64).max)
    metrics: dict[str, np.ndarray] = {}
    for k in ks:
        reachable_U = np.minimum(counts, k)
        hit_Uk = hit_UK[:, :k]
        metrics[f"recall@{k}"] = hit_Uk.sum(1) / reachable_U
        metrics[f"ndcg@{k}"] = hit_Uk @ gain_K[:k] / ideal_K[reachable_U - 1]
        metrics[f"mrr@{k}"] = np.where(first_U <= k, 1.0 / first_U, 0.0)
        metrics[f"hit@{k}"] = (first_U <= k).astype(np.float64)
    return metrics


def item_coverage(top_UK: np.ndarray, n_items: int, k: int) -> float:
    """Share of the catalogue (0..1) that appears among anybody's first k; -1 and row 0 don't count.

    Raises UsageError if ``n_items`` or ``k`` is below 1.
    """
    if n_items < 1 or k < 1:
        raise UsageError(f"n_items = {n_items}, k = {k}; give 1 or more")
    shown = np.unique(top_UK[:, :k])
    return float((shown > 0).sum() / n_items)


def _is_target(top_UK: np.ndarray, counts: np.ndarray, target_items: np.ndarray) -> np.ndarray:
    """bool [U, K]: is the item one of its user's targets?"""
    # -1 moves to 0, a row that no target has, so that it can't be taken for the last item of the user before
    rows = np.maximum(top_UK, 0)
    width = int(max(rows.max(initial=0), target_items.max(initial=0))) + 1
    wanted = np.sort(np.repeat(np.arange(len(counts)), counts) * width + target_items)
    asked = np.arange(len(counts))[:, None] * width + rows
    place = np.minimum(np.searchsorted(wanted, asked), len(wanted) - 1)
    hit: np.ndarray = (wanted[place] == asked) & (rows > 0)
    return hit
