"""Checks and helpers that indexes share: FAISS validates with bare ``assert``, which ``python -O`` removes.

Shape letters: B queries, V vectors, D width, k hits of a query.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from bseq_plugin.errors import UsageError
from bseq_plugin.schema.indexes import RowMask

Search = Callable[[Tensor, int], tuple[Tensor, Tensor]]


def checked_vectors(vectors_VD: Tensor) -> Tensor:
    """Return ``vectors_VD`` as contiguous float32 on CPU, the same memory where possible.

    Raises UsageError for another shape, no vectors, or a value that is not finite.
    """
    vectors_VD = _matrix(vectors_VD, "item vectors", "[V, D]")
    if vectors_VD.shape[0] < 1 or vectors_VD.shape[1] < 1:
        raise UsageError(f"item vectors have shape {tuple(vectors_VD.shape)}; an index needs at least one vector")
    _require_finite(vectors_VD, "item vectors", "remove them or train again")
    return vectors_VD


def checked_queries(queries_BD: Tensor, k: int, dim: int, n_vectors: int, max_k: int | None = None) -> Tensor:
    """Return ``queries_BD`` as contiguous float32 on CPU; B may be 0.

    Raises UsageError for a wrong width, values that are not finite, or k outside 1..V (or the backend's limit).
    """
    queries_BD = _matrix(queries_BD, "queries", f"[B, {dim}]")
    if queries_BD.shape[1] != dim:
        raise UsageError(f"queries have width {queries_BD.shape[1]}, the index has {dim}; use this version's encoder")
    if isinstance(k, bool) or not isinstance(k, int):
        raise UsageError(f"k = {k!r}; give a whole number of 1 or more")
    if not 1 <= k <= n_vectors:
        raise UsageError(f"k = {k}; give 1..{n_vectors}, for the index has {n_vectors} vectors")
    if max_k is not None and k > max_k:
        raise UsageError(f"k = {k}; this backend returns at most {max_k}: ask for less or use index 'exact'")
    _require_finite(queries_BD, "queries", "check the histories they come from")
    return queries_BD


def checked_mask(mask: RowMask, n_queries: int, n_vectors: int) -> tuple[Tensor | None, tuple[Tensor, Tensor] | None]:
    """Return the allowed rows (int64, ascending; None = all) and the denied pairs of ``mask``.

    Raises UsageError if the mask is not bool [V], or a pair names a query or a row that is not there.
    """
    allowed_V, denied = mask.allowed_V, mask.denied
    if allowed_V is not None and (allowed_V.dtype != torch.bool or allowed_V.shape != (n_vectors,)):
        raise UsageError(
            f"allowed_V has shape {tuple(allowed_V.shape)} and dtype {allowed_V.dtype}; give bool [{n_vectors}]"
        )
    for values_P, limit in zip(denied or (), (n_queries, n_vectors), strict=False):
        if values_P.numel() and not 0 <= int(values_P.min()) <= int(values_P.max()) < limit:
            raise UsageError(f"denied pairs have {int(values_P.min())}..{int(values_P.max())}; give 0..{limit - 1}")
    allowed_A = None if allowed_V is None else torch.nonzero(allowed_V.cpu()).flatten()
    return allowed_A, None if denied is None or not denied[0].numel() else denied


def all_finite(values: Tensor) -> bool:
    """Return whether no value is NaN or Inf. A sum tells it in one pass over the memory, unless it overflows."""
    return math.isfinite(float(values.sum())) or bool(torch.isfinite(values).all())


def _require_finite(values: Tensor, what: str, remedy: str) -> None:
    if not all_finite(values):
        rows = torch.nonzero(~torch.isfinite(values).all(1)).flatten()[:10].tolist()
        raise UsageError(f"{what} have NaN or Inf, for example in rows {rows}; {remedy}")


def _matrix(values: Tensor, what: str, shape: str) -> Tensor:
    if not isinstance(values, Tensor):
        raise UsageError(f"{what} are {type(values).__name__}; give a float tensor {shape}: torch.as_tensor(...)")
    if values.dim() != 2 or not values.is_floating_point():
        raise UsageError(
            f"{what} have shape {tuple(values.shape)} and dtype {values.dtype}; give a float tensor {shape}"
        )
    return values.detach().to("cpu", torch.float32).contiguous()


def best_first(scores_BN: Tensor, rows_BN: Tensor) -> tuple[Tensor, Tensor]:
    """Sort both by descending score, equal scores by ascending row; missing hits (row -1, score -inf) come last."""
    rows_BN, order_BN = torch.sort(rows_BN, dim=1)
    scores_BN, places_BN = torch.sort(scores_BN.gather(1, order_BN), dim=1, descending=True, stable=True)
    return scores_BN, rows_BN.gather(1, places_BN)


def padded(scores_Bn: Tensor, rows_Bn: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the first k hits of each query, filled up with missing ones: row -1, score -inf."""
    missing = max(0, k - scores_Bn.shape[1])
    return pad(scores_Bn[:, :k], (0, missing), value=-torch.inf), pad(rows_Bn[:, :k], (0, missing), value=-1)


def search_with_ties(search: Search, queries_BD: Tensor, k: int, limit: int) -> tuple[Tensor, Tensor]:
    """Search the top k exactly, by a ``search`` that keeps arbitrary ones of the equal scores at place k: the lowest
    rows win here.

    One hit more than asked shows whether place k is tied; tied queries are searched again, deeper, until the whole
    group of equal scores is there. ``limit``: the deepest search the backend does; a group that reaches beyond it
    stays arbitrary.
    """
    scores_Bk, rows_Bk = best_first(*search(queries_BD, min(k + 1, limit)))
    depth = min(k + 1, limit)
    # a search that ran to the limit has the whole group, or can't get it
    open_B = torch.nonzero(scores_Bk[:, -1] == scores_Bk[:, k - 1]).flatten() if depth > k else torch.empty(0).long()
    scores_Bk, rows_Bk = scores_Bk[:, :k].clone(), rows_Bk[:, :k].clone()
    while open_B.numel() and depth < limit:
        depth = min(4 * depth, limit)
        scores_On, rows_On = best_first(*search(queries_BD[open_B], depth))
        scores_Bk[open_B], rows_Bk[open_B] = scores_On[:, :k], rows_On[:, :k]
        open_B = open_B[scores_On[:, -1] == scores_On[:, k - 1]]
    return scores_Bk, rows_Bk


def inner_products(queries_BD: Tensor, vectors_VD: Tensor, rows_Bk: Tensor) -> Tensor:
    """Return float32 [B, k], the score of each row for its query, -inf where the row is -1; by blocks of queries."""
    blocks = []
    for queries_QD, rows_Qk in zip(torch.split(queries_BD, 64), torch.split(rows_Bk, 64), strict=True):
        vectors_QkD = vectors_VD[rows_Qk.clamp_min(0)]
        blocks.append(torch.einsum("qd,qkd->qk", queries_QD, vectors_QkD).masked_fill(rows_Qk < 0, -torch.inf))
    return torch.cat(blocks)
