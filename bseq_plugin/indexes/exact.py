"""Exact search in torch: the default up to a million items, and the oracle of every other backend.

Shape letters: B queries, V vectors, D width, k hits of a query, Q queries of a block, C vectors of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from bseq_plugin.errors import UsageError
from bseq_plugin.indexes.checks import best_first, checked_mask, checked_queries, checked_vectors, padded
from bseq_plugin.schema.indexes import IndexCapabilities, RowMask, VectorIndex
from bseq_plugin.schema.options import PartOptions

QUERY_BLOCK = 256


class ExactOptions(PartOptions):
    """Options of ``exact``. ``dtype`` is how vectors are kept, on ``device``; scores are always computed in float32.
    ``chunk``: vectors scored at a time.
    """

    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    chunk: int = Field(32_768, ge=1)
    device: str = Field("cpu", pattern=r"^(cpu|cuda(:\d+)?)$")


class ExactIndex(VectorIndex[ExactOptions]):
    """Search by every inner product, in blocks of at most 256 queries x ``chunk`` vectors; no file of its own."""

    name = "exact"
    capabilities = IndexCapabilities(exact=True, masks=True)

    def __init__(self, vectors_VD: Tensor, options: ExactOptions) -> None:
        if options.device != "cpu" and not torch.cuda.is_available():
            raise UsageError(f"device = {options.device!r}, but torch sees no GPU here; leave it out")
        self._vectors_VD = vectors_VD.to(options.device, getattr(torch, options.dtype))
        self._options = options

    @classmethod
    def build(cls, vectors_VD: Tensor, options: ExactOptions | None = None) -> ExactIndex:
        """Index ``vectors_VD`` [V, D] without a copy (float32 on CPU). Raises UsageError for NaN, Inf, no vectors."""
        return cls(checked_vectors(vectors_VD), cls.checked_options(options))

    def search(self, queries_BD: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return ``(scores_Bk float32, rows_Bk int64)``, best first, equal scores by row. See ``VectorIndex``."""
        return self.search_masked(queries_BD, k, RowMask())

    @torch.no_grad()
    def search_masked(self, queries_BD: Tensor, k: int, mask: RowMask) -> tuple[Tensor, Tensor]:
        """Search among the rows that are left. The cost is that of the allowed rows, not of the catalogue."""
        n_vectors, dim = self._vectors_VD.shape
        queries_BD = checked_queries(queries_BD, k, dim, n_vectors).to(self._options.device)
        allowed_A, denied = checked_mask(mask, queries_BD.shape[0], n_vectors)
        blocks = []
        for start in range(0, max(1, queries_BD.shape[0]), QUERY_BLOCK):
            of_block = _denied_of(denied, start, start + QUERY_BLOCK)
            blocks.append(self._search_block(queries_BD[start : start + QUERY_BLOCK], k, allowed_A, of_block))
        return torch.cat([scores for scores, _ in blocks]).cpu(), torch.cat([rows for _, rows in blocks]).cpu()

    def _search_block(
        self, queries_QD: Tensor, k: int, allowed_A: Tensor | None, denied: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        best_scores_Qk = queries_QD.new_empty(queries_QD.shape[0], 0)
        best_rows_Qk = torch.empty_like(best_scores_Qk, dtype=torch.int64)
        for rows_C, vectors_CD in self._chunks(allowed_A):
            scores_QC = queries_QD @ vectors_CD.float().T
            if denied is not None:
                _drop(scores_QC, rows_C, *denied)
            scores_Qk, columns_Qk = _top(scores_QC, k)
            best_scores_Qk = torch.cat([best_scores_Qk, scores_Qk], dim=1)
            best_rows_Qk = torch.cat([best_rows_Qk, rows_C[columns_Qk]], dim=1)
            best_scores_Qk, best_rows_Qk = (x[:, :k] for x in best_first(best_scores_Qk, best_rows_Qk))
        best_scores_Qk, best_rows_Qk = padded(best_scores_Qk, best_rows_Qk, k)  # fewer rows than k may be allowed
        return best_scores_Qk, best_rows_Qk.masked_fill(best_scores_Qk == -torch.inf, -1)

    def _chunks(self, allowed_A: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (rows, their vectors), a chunk at a time."""
        if allowed_A is None:
            first = 0
            for vectors_CD in torch.split(self._vectors_VD, self._options.chunk):
                yield torch.arange(first, first + len(vectors_CD), device=vectors_CD.device), vectors_CD
                first += len(vectors_CD)
        else:
            for rows_C in torch.split(allowed_A.to(self._vectors_VD.device), self._options.chunk):
                if len(rows_C):
                    yield rows_C, self._vectors_VD[rows_C]

    def save(self, path: Path) -> None:
        """Write nothing: the vectors are all there is."""

    @classmethod
    def load(cls, path: Path, vectors_VD: Tensor, options: ExactOptions | None = None) -> ExactIndex:
        """Build the index from the vectors; ``path`` is not read."""
        return cls.build(vectors_VD, options)


def _denied_of(denied: tuple[Tensor, Tensor] | None, start: int, end: int) -> tuple[Tensor, Tensor] | None:
    """Return the pairs of queries start..end-1, who become 0..end-start-1."""
    if denied is None:
        return None
    chosen_P = (denied[0] >= start) & (denied[0] < end)
    return denied[0][chosen_P] - start, denied[1][chosen_P]


def _drop(scores_QC: Tensor, rows_C: Tensor, queries_P: Tensor, rows_P: Tensor) -> None:
    """Put -inf where a pair's row stands in ``rows_C`` (ascending)."""
    queries_P, rows_P = queries_P.to(rows_C.device), rows_P.to(rows_C.device)
    columns_P = torch.searchsorted(rows_C, rows_P).clamp_max(len(rows_C) - 1)
    there_P = rows_C[columns_P] == rows_P
    scores_QC[queries_P[there_P], columns_P[there_P]] = -torch.inf


def _top(scores_QC: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k best columns of each row in any order; of equal scores the lowest columns."""
    k = min(k, scores_QC.shape[1])
    scores_Qk, columns_Qk = torch.topk(scores_QC, k, dim=1, sorted=False)
    # topk keeps arbitrary ones of the scores equal to the k-th: only rows where some were left out are sorted in full
    last_Q1 = scores_Qk.min(1, keepdim=True).values
    tied_Q = ((scores_QC >= last_Q1).sum(1) > k) & (last_Q1[:, 0] > -torch.inf)
    if bool(tied_Q.any()):
        sorted_TC, order_TC = torch.sort(scores_QC[tied_Q], dim=1, descending=True, stable=True)
        scores_Qk[tied_Q], columns_Qk[tied_Q] = sorted_TC[:, :k], order_TC[:, :k]
    return scores_Qk, columns_Qk
