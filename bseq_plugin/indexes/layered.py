"""An index with a few items on top that changed since it was built: the big one stays, and is not asked for them.

Shape letters: B queries, V vectors, D width, S stale rows of the base, U rows on top, k hits of a query.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from bseq_plugin.errors import UsageError
from bseq_plugin.indexes.checks import best_first, checked_queries, padded
from bseq_plugin.indexes.exact import ExactIndex
from bseq_plugin.schema.indexes import IndexCapabilities, VectorIndex
from bseq_plugin.schema.options import PartOptions


class LayeredIndex(VectorIndex):
    """An index that answers from ``base`` for rows 0..n-1, but for stale ones; these, and all rows from n on, it
    searches exactly.

    Exact where the base is. It is made of other indexes and has no options; it writes what its base writes.
    """

    def __init__(self, base: VectorIndex, vectors_VD: Tensor, n_base: int, stale_S: Tensor) -> None:
        """Lay ``vectors_VD``, all vectors as they are now, on ``base``. ``stale_S``: int64, ascending, < ``n_base``."""
        self.name = base.name  # type: ignore[misc]  # it stands for the index that was published
        self._base, self._vectors_VD, self._n_base = base, vectors_VD, n_base
        self._rows_U = torch.cat([stale_S, torch.arange(n_base, len(vectors_VD))])
        self._on_top = ExactIndex.build(vectors_VD[self._rows_U]) if len(self._rows_U) else None
        self._n_stale = len(stale_S)
        self._stale_V = torch.zeros(n_base + 1, dtype=torch.bool)  # the last place: for the row -1 of a missing hit
        self._stale_V[stale_S] = True
        limit = base.capabilities.max_k
        if limit is not None and limit <= self._n_stale:
            raise UsageError(f"{self._n_stale} items changed since the index was built; build it again")
        self.capabilities = IndexCapabilities(
            exact=base.capabilities.exact,
            device=base.capabilities.device,
            max_k=None if limit is None else limit - self._n_stale,
        )

    @classmethod
    def build(cls, vectors_VD: Tensor, options: PartOptions | None = None) -> Self:
        """Raise UsageError: a layered index is not a part."""
        raise UsageError("a layered index is made of another one; build that")

    @torch.no_grad()
    def search(self, queries_BD: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return ``(scores_Bk float32, rows_Bk int64)``, best first. See ``VectorIndex``."""
        n_vectors, dim = self._vectors_VD.shape
        queries_BD = checked_queries(queries_BD, k, dim, n_vectors, self.capabilities.max_k)
        scores_Bn, rows_Bn = self._base.search(queries_BD, min(k + self._n_stale, self._n_base))
        gone_Bn = self._stale_V[rows_Bn] | (rows_Bn < 0)
        hits = [(scores_Bn.masked_fill(gone_Bn, -torch.inf), rows_Bn.masked_fill(gone_Bn, -1))]
        if self._on_top is not None:
            scores_Bu, places_Bu = self._on_top.search(queries_BD, min(k, len(self._rows_U)))
            hits.append((scores_Bu, self._rows_U[places_Bu]))
        scores_Bm, rows_Bm = (torch.cat(parts, dim=1) for parts in zip(*hits, strict=True))
        return padded(*best_first(scores_Bm, rows_Bm), k)

    def save(self, path: Path) -> None:
        """Write the base: the rest is in the vectors."""
        self._base.save(path)

    @classmethod
    def load(cls, path: Path, vectors_VD: Tensor, options: PartOptions | None = None) -> Self:
        """Raise UsageError: a layered index is not a part."""
        raise UsageError("a layered index is made of another one; load that")
