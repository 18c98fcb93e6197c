"""Whole-catalogue top-k and ranking metrics; used by training (validation) and by evaluation.

Shape letters: B users asked about, b users of one block, V items (row 0 is the unknown item), D width, K interests,
U users evaluated, N targets or exclusions in all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from bseq_plugin.errors import UsageError

# Scores held at one time: 64 MB in float32, large enough for the matrix product to run at full speed.
MAX_BLOCK_SCORES = 16_000_000
# (offsets int64 [B + 1], rows int64 [N]): the rows that must not be returned, one run a user
Excluded = tuple[np.ndarray, np.ndarray]


def top_k_items(
    queries_BD: Tensor, item_vectors_VD: Tensor, k: int, excluded: Excluded | None = None, block: int | None = None
) -> np.ndarray:
    """The k items of largest inner product for each user, best first.

    Args:
        queries_BD: float [B, D], or [B, K, D] for K interests a user: an item's score is its largest.
        item_vectors_VD: float [V + 1, D]; row 0, the unknown item, is never returned.
        k: how many, 1 or more.
        excluded: rows that must not be returned for each user.
        block: users scored at once; by default as many as fit ``MAX_BLOCK_SCORES``.

    Returns:
        int64 [B, k] vocabulary rows; equal scores: the smaller row first; -1 where fewer than k items are left.

    Raises:
        UsageError: see ``top_k_scores``.
    """
    n_users, n_rows = queries_BD.shape[0], item_vectors_VD.shape[0]
    n_interests = queries_BD.shape[1] if queries_BD.dim() == 3 else 1
    if block is None:
        block = max(1, MAX_BLOCK_SCORES // max(1, n_rows * n_interests))
    items_DV = item_vectors_VD.T

    def score_block(users: slice) -> Tensor:
        score_bV = queries_BD[users] @ items_DV
        return score_bV.amax(1) if score_bV.dim() == 3 else score_bV

    with torch.no_grad():
        return top_k_scores(score_block, n_users, k, excluded, block)


def top_k_scores(
    score_block: Callable[[slice], Tensor], n_users: int, k: int, excluded: Excluded | None, block: int
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
        score_bV = score_block(users)
        score_bV[:, 0] = -torch.inf
        if excluded is not None:
            _exclude(score_bV, excluded, users)
        if torch.isnan(score_bV).any():
            raise UsageError(f"scores of users {start}..{users.stop - 1} are not numbers (NaN); did training diverge?")
        rows = _top_rows(score_bV, min(k, score_bV.shape[1]))
        top_BK[users, : rows.shape[1]] = rows.cpu().numpy()
    return top_BK


def _exclude(score_bV: Tensor, excluded: Excluded, users: slice) -> None:
    offsets = excluded[0][users.start : users.stop + 1]
    rows = np.asarray(excluded[1][offsets[0] : offsets[-1]], dtype=np.int64)
    if len(rows) and (rows.max() >= score_bV.shape[1] or rows.min() < 0):
        raise UsageError(f"excluded has row {rows.max()}; this catalogue has rows 0..{score_bV.shape[1] - 1}")
    local = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    device = score_bV.device
    score_bV[torch.from_numpy(local).to(device), torch.from_numpy(rows).to(device)] = -torch.inf


def _top_rows(score_bV: Tensor, k: int) -> Tensor:
    """int64 [b, k]: by score, then by row; -1 for a score of -inf.

    ``torch.topk`` leaves open which of several equal scores it takes. Inside the k that is mended by sorting; only for
    users with a tie across the border (seen by asking for one more) are the tied rows counted out.
    """
    more = score_bV.topk(min(k + 1, score_bV.shape[1]), dim=1)
    top, rows = more.values[:, :k], more.indices[:, :k]
    if more.values.shape[1] > k:
        last = more.values[:, k - 1]
        tied = torch.nonzero((last == more.values[:, k]) & (last > -torch.inf)).flatten()
        if len(tied):
            rows = rows.clone()
            rows[tied] = _rows_with_ties(score_bV[tied], last[tied, None], k)
    rows = rows.sort(dim=1).values
    top, order = score_bV.gather(1, rows).sort(dim=1, descending=True, stable=True)
    return rows.gather(1, order).masked_fill_(top == -torch.inf, -1)


def _rows_with_ties(score_bV: Tensor, last_b1: Tensor, k: int) -> Tensor:
    """int64 [b, k]: all rows above ``last``, filled up with the smallest rows that equal it."""
    above, equal = score_bV > last_b1, score_bV == last_b1
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
