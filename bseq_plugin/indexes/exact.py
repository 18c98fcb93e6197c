"""Exact search in torch: the default up to a million items, and the oracle of every other backend.

Shape letters: B queries, V vectors, D width, k hits of a query, Q queries of a block, C vectors of a block.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from bseq_plugin.indexes.checks import best_first, checked_options, checked_queries, checked_vectors
from bseq_plugin.schema.options import PartOptions
from bseq_plugin.schema.parts import IndexCapabilities, VectorIndex

QUERY_BLOCK = 256


class ExactOptions(PartOptions):
    """``dtype`` is how vectors are kept; scores are always computed in float32. ``chunk``: vectors scored at a time."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    chunk: int = Field(32_768, ge=1)


class ExactIndex(VectorIndex):
    """Every inner product, in blocks of at most 256 queries x ``chunk`` vectors. Needs no file of its own."""

    name = "exact"
    Options = ExactOptions
    capabilities = IndexCapabilities(exact=True)

    def __init__(self, vectors_VD: Tensor, options: ExactOptions) -> None:
        self._vectors_VD = vectors_VD.to(getattr(torch, options.dtype))
        self._options = options

    @classmethod
    def build(cls, vectors_VD: Tensor, options: Any = None) -> ExactIndex:
        """Index ``vectors_VD`` [V, D] without a copy (float32). Raises UsageError for NaN, Inf or no vectors."""
        return cls(checked_vectors(vectors_VD), checked_options(cls.Options, options, cls.name))

    @torch.no_grad()
    def search(self, queries_BD: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """``(scores_Bk float32, rows_Bk int64)``, best first, equal scores by ascending row. See ``VectorIndex``."""
        n_vectors, dim = self._vectors_VD.shape
        queries_BD = checked_queries(queries_BD, k, dim, n_vectors)
        blocks = [self._search_block(block_QD, k) for block_QD in torch.split(queries_BD, QUERY_BLOCK)]
        return torch.cat([scores for scores, _ in blocks]), torch.cat([rows for _, rows in blocks])

    def _search_block(self, queries_QD: Tensor, k: int) -> tuple[Tensor, Tensor]:
        best_scores_Qk = queries_QD.new_empty(queries_QD.shape[0], 0)
        best_rows_Qk = torch.empty(queries_QD.shape[0], 0, dtype=torch.int64)
        first = 0
        for vectors_CD in torch.split(self._vectors_VD, self._options.chunk):
            scores_Qk, rows_Qk = _top(queries_QD @ vectors_CD.float().T, k)
            best_scores_Qk = torch.cat([best_scores_Qk, scores_Qk], dim=1)
            best_rows_Qk = torch.cat([best_rows_Qk, rows_Qk + first], dim=1)
            best_scores_Qk, best_rows_Qk = (x[:, :k] for x in best_first(best_scores_Qk, best_rows_Qk))
            first += vectors_CD.shape[0]
        return best_scores_Qk, best_rows_Qk

    def save(self, path: Path) -> None:
        """Nothing: the vectors are all there is."""

    @classmethod
    def load(cls, path: Path, vectors_VD: Tensor, options: Any = None) -> ExactIndex:
        """The same as ``build``; ``path`` is not read."""
        return cls.build(vectors_VD, options)


def _top(scores_QC: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best columns of each row in any order; of equal scores the lowest columns."""
    k = min(k, scores_QC.shape[1])
    scores_Qk, columns_Qk = torch.topk(scores_QC, k, dim=1, sorted=False)
    # topk keeps arbitrary ones of the scores equal to the k-th: only rows where some were left out are sorted in full
    tied_Q = (scores_QC >= scores_Qk.min(1, keepdim=True).values).sum(1) > k
    if bool(tied_Q.any()):
        sorted_TC, order_TC = torch.sort(scores_QC[tied_Q], dim=1, descending=True, stable=True)
        scores_Qk[tied_Q], columns_Qk[tied_Q] = sorted_TC[:, :k], order_TC[:, :k]
    return scores_Qk, columns_Qk
