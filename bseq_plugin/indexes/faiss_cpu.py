"""FAISS on CPU: exact (``Flat``) or approximate (``HNSW32``, ``IVF256,Flat``, ...), by factory string.

Shape letters: B queries, V vectors, D width, k hits of a query.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from bseq_plugin.errors import MissingDependencyError, StoreError, UsageError
from bseq_plugin.indexes.checks import (
    best_first,
    checked_options,
    checked_queries,
    checked_vectors,
    inner_products,
    search_with_ties,
)
from bseq_plugin.schema.options import PartOptions
from bseq_plugin.schema.parts import IndexCapabilities, VectorIndex

FLAT = "Flat"


class FaissCpuOptions(PartOptions):
    """``factory``: a FAISS factory string; ``nprobe`` and ``ef_search``: how far IVF and HNSW indexes look."""

    factory: str = Field(FLAT, min_length=1)
    nprobe: int | None = Field(None, ge=1)
    ef_search: int | None = Field(None, ge=1)


class FaissCpuIndex(VectorIndex):
    """A FAISS index under the inner product. Exact with the factory ``Flat``, else approximate in which hits it finds;
    their scores are computed again from the vectors, so that they are inner products whatever the index compresses.
    """

    name = "faiss_cpu"
    Options = FaissCpuOptions
    capabilities = IndexCapabilities(exact=True)  # with the default factory

    def __init__(self, index: Any, vectors_VD: Tensor, options: FaissCpuOptions) -> None:
        self._index = index
        self._vectors_VD = vectors_VD
        self._flat = options.factory == FLAT

    @classmethod
    def build(cls, vectors_VD: Tensor, options: Any = None) -> FaissCpuIndex:
        """Train (if the factory needs it) and fill an index.

        Raises UsageError for vectors that are not finite or a factory FAISS refuses, MissingDependencyError
        without FAISS.
        """
        faiss = import_faiss()
        vectors_VD, parsed = checked_vectors(vectors_VD), checked_options(cls.Options, options, cls.name)
        x_VD = vectors_VD.numpy()
        try:
            index = faiss.index_factory(x_VD.shape[1], parsed.factory, faiss.METRIC_INNER_PRODUCT)
            if not index.is_trained:
                index.train(x_VD)
            index.add(x_VD)
        except (RuntimeError, AssertionError) as error:
            raise UsageError(
                f"FAISS can't build factory = {parsed.factory!r} over vectors of shape {x_VD.shape}: "
                f"{_last_words(error)}"
            ) from error
        _check(index, vectors_VD, UsageError, f"factory = {parsed.factory!r}")
        _set_search_options(index, parsed)
        return cls(index, vectors_VD, parsed)

    @torch.no_grad()
    def search(self, queries_BD: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """``(scores_Bk float32, rows_Bk int64)``, best first. See ``VectorIndex``."""
        n_vectors, dim = self._vectors_VD.shape
        queries_BD = checked_queries(queries_BD, k, dim, n_vectors)
        if queries_BD.shape[0] == 0:
            return torch.empty(0, k), torch.empty(0, k, dtype=torch.int64)
        if self._flat:
            return search_with_ties(self._search, queries_BD, k, n_vectors)
        _, rows_Bk = self._search(queries_BD, k)
        return best_first(inner_products(queries_BD, self._vectors_VD, rows_Bk), rows_Bk)

    def _search(self, queries_BD: Tensor, k: int) -> tuple[Tensor, Tensor]:
        scores_Bk, rows_Bk = (torch.from_numpy(x) for x in self._index.search(queries_BD.numpy(), k))
        return scores_Bk.masked_fill(rows_Bk < 0, -torch.inf), rows_Bk  # FAISS pads with the lowest float32

    def save(self, path: Path) -> None:
        """Write the index to ``path``. Raises StoreError if that fails."""
        faiss = import_faiss()
        try:
            faiss.write_index(self._index, str(path))
        except RuntimeError as error:
            raise StoreError(f"FAISS can't write {str(path)!r}: {_last_words(error)}") from error

    @classmethod
    def load(cls, path: Path, vectors_VD: Tensor, options: Any = None) -> FaissCpuIndex:
        """Read the index saved at ``path``, whose bytes the caller has verified: FAISS loads most damaged files.

        Raises StoreError if it is unreadable or is not an inner-product index over as many vectors of that width.
        """
        vectors_VD, parsed = checked_vectors(vectors_VD), checked_options(cls.Options, options, cls.name)
        index = _read(path)
        _check(index, vectors_VD, StoreError, f"index {str(path)!r}")
        _set_search_options(index, parsed)
        return cls(index, vectors_VD, parsed)


def import_faiss() -> Any:
    """The faiss module. Raises MissingDependencyError with the remedy."""
    try:
        import faiss
    except ImportError as error:
        raise MissingDependencyError(
            f"this index needs FAISS ({error}): pip install faiss-cpu, or use index 'exact'"
        ) from error
    return faiss


def _read(path: Path) -> Any:
    faiss = import_faiss()
    if not path.is_file():
        raise StoreError(f"there is no index file {str(path)!r}; publish again")
    # No vector in the file can be longer than the file: a damaged length must not allocate FAISS's default of 1 TB.
    limit = faiss.get_deserialization_vector_byte_limit()
    faiss.set_deserialization_vector_byte_limit(path.stat().st_size)
    try:
        return faiss.read_index(str(path))
    except RuntimeError as error:
        raise StoreError(f"FAISS can't read {str(path)!r}: {_last_words(error)}") from error
    finally:
        faiss.set_deserialization_vector_byte_limit(limit)


def _check(index: Any, vectors_VD: Tensor, error: type[UsageError] | type[StoreError], what: str) -> None:
    faiss = import_faiss()
    found = (index.ntotal, index.d, index.metric_type)
    wanted = (*vectors_VD.shape, faiss.METRIC_INNER_PRODUCT)
    if found != wanted:
        raise error(f"{what} has (vectors, width, metric) = {found}, wanted {wanted}; publish again with another index")


def _set_search_options(index: Any, options: FaissCpuOptions) -> None:
    faiss = import_faiss()
    for key, name in (("nprobe", "nprobe"), ("ef_search", "efSearch")):
        value = getattr(options, key)
        if value is None:
            continue
        try:
            faiss.ParameterSpace().set_index_parameter(index, name, value)
        except RuntimeError as error:
            raise UsageError(
                f"{key} = {value} does not apply to factory = {options.factory!r}; leave it out"
            ) from error


def _last_words(error: BaseException) -> str:
    """What went wrong without FAISS's C++ signature and build path."""
    return str(error).rsplit(".cpp:", 1)[-1].partition(": ")[2].strip() or str(error) or type(error).__name__
