"""FAISS on CPU: exact (``Flat``) or approximate, by factory string or by a kind that is sized for the catalogue.

    ivf_flat   inverted lists of whole vectors: fast to build, 8 bytes a vector more than flat
    ivf_pq     inverted lists of 4-bit codes (fast scan), the best of them scored again from the vectors
    hnsw       a graph: the quickest answers, slow to build, twice the memory

Shape letters: B queries, V vectors, D width, k hits of a query.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from bseq_plugin.errors import MissingDependencyError, StoreError, UsageError
from bseq_plugin.indexes.checks import best_first, checked_queries, checked_vectors, inner_products, search_with_ties
from bseq_plugin.schema.indexes import IndexCapabilities, VectorIndex
from bseq_plugin.schema.options import PartOptions

FLAT = "Flat"
# factories whose scores are inner products already
WHOLE_VECTORS = re.compile(r"(IVF\d+(_HNSW\d+)?,)?Flat|HNSW\d+(,Flat)?|.*,RFlat")
MAX_NPROBE = 1024  # beyond this, exact search is no slower
WRITE_BYTES = 1 << 20  # handed over at a time
MAX_TRAIN_PER_LIST = 64  # FAISS's k-means would draw 256 vectors a list itself, which is slower and no better


class FaissCpuOptions(PartOptions):
    """Options of ``faiss_cpu``. ``factory``: a FAISS factory string, or ``ivf_flat``, ``ivf_pq``, ``hnsw``. ``nprobe``
    and ``ef_search``: how far IVF and HNSW indexes look. ``refine``: a compressing index is asked for so many times k,
    and the best k of them are chosen by the vectors themselves (default: 8 for ``ivf_pq``, else 1).
    """

    factory: str = Field(FLAT, min_length=1)
    nprobe: int | None = Field(None, ge=1)
    ef_search: int | None = Field(None, ge=1)
    refine: int | None = Field(None, ge=1, le=1000)


class FaissCpuIndex(VectorIndex[FaissCpuOptions]):
    """A FAISS index under the inner product. Exact with the factory ``Flat``, else approximate in which hits it finds;
    their scores are inner products whatever the index compresses.
    """

    name = "faiss_cpu"
    capabilities = IndexCapabilities(exact=True)  # with the default factory

    def __init__(self, index: Any, vectors_VD: Tensor, options: FaissCpuOptions) -> None:
        self._index = index
        self._vectors_VD = vectors_VD
        self._options = options
        factory = sized_factory(options.factory, *vectors_VD.shape)
        self._flat = factory == FLAT
        self._rescored = WHOLE_VECTORS.fullmatch(factory) is None
        own = 8 if options.factory == "ivf_pq" else 1
        self._refine = 1 if factory.endswith("RFlat") else options.refine or own
        self.capabilities = IndexCapabilities(exact=self._flat)

    @classmethod
    def build(cls, vectors_VD: Tensor, options: FaissCpuOptions | None = None) -> FaissCpuIndex:
        """Train (if the factory needs it) and fill an index.

        Raises UsageError for vectors that are not finite or a factory FAISS refuses, MissingDependencyError
        without FAISS.
        """
        faiss = import_faiss()
        vectors_VD, parsed = checked_vectors(vectors_VD), cls.checked_options(options)
        x_VD = vectors_VD.numpy()
        factory = sized_factory(parsed.factory, *x_VD.shape)
        try:
            index = faiss.index_factory(x_VD.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
            if not index.is_trained:
                index.train(training_part(x_VD, factory))
            index.add(x_VD)
        except (RuntimeError, AssertionError) as error:
            raise UsageError(
                f"FAISS can't build factory = {parsed.factory!r} over vectors of shape {x_VD.shape}: "
                f"{last_words(error)}"
            ) from error
        _check(index, vectors_VD, UsageError, f"factory = {parsed.factory!r}")
        _set_search_options(index, parsed)
        return cls(index, vectors_VD, parsed)

    @torch.no_grad()
    def search(self, queries_BD: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return ``(scores_Bk float32, rows_Bk int64)``, best first. See ``VectorIndex``."""
        n_vectors, dim = self._vectors_VD.shape
        queries_BD = checked_queries(queries_BD, k, dim, n_vectors)
        if queries_BD.shape[0] == 0:
            return torch.empty(0, k), torch.empty(0, k, dtype=torch.int64)
        if self._flat:
            return search_with_ties(self._search, queries_BD, k, n_vectors)
        scores_Bk, rows_Bk = self._search(queries_BD, min(k * self._refine, n_vectors))
        if self._rescored:
            scores_Bk = inner_products(queries_BD, self._vectors_VD, rows_Bk)
        elif not (scores_Bk[:, 1:] == scores_Bk[:, :-1]).any():  # sorted by score, and no ties to put in order
            return scores_Bk, rows_Bk
        return tuple(x[:, :k] for x in best_first(scores_Bk, rows_Bk))  # type: ignore[return-value]

    def _search(self, queries_BD: Tensor, k: int) -> tuple[Tensor, Tensor]:
        scores_Bk, rows_Bk = self._index.search(queries_BD.numpy(), k)
        if not self._flat and (rows_Bk[:, -1] < 0).any():  # FAISS pads behind with the lowest float32
            scores_Bk[rows_Bk < 0] = -np.inf
        return torch.from_numpy(scores_Bk), torch.from_numpy(rows_Bk)

    @property
    def n_vectors(self) -> int:
        """The number of vectors, V."""
        return len(self._vectors_VD)

    @property
    def faiss_index(self) -> Any:
        """The index object of FAISS."""
        return self._index

    def efforts(self) -> list[dict[str, Any]]:
        """Return ``nprobe`` of an IVF index, ``ef_search`` of a graph, in powers of two."""
        factory = sized_factory(self._options.factory, self._index.ntotal, self._index.d)
        lists = re.match(r"IVF(\d+)", factory)
        if lists:
            return [{"nprobe": 2**power} for power in range(int(lists[1]).bit_length()) if 2**power <= MAX_NPROBE]
        return [{"ef_search": 2**power} for power in range(4, 11)] if factory.startswith("HNSW") else []

    def with_effort(self, effort: dict[str, Any]) -> FaissCpuIndex:
        """Return this FAISS index in a new wrapper. It changes: all its wrappers look as far as the latest effort."""
        parsed = self.checked_options({**self._options.model_dump(exclude_none=True), **effort})
        _set_search_options(self._index, parsed)
        return FaissCpuIndex(self._index, self._vectors_VD, parsed)

    def save(self, path: Path) -> None:
        """Write the index to ``path``. Raises StoreError if that fails."""
        write_indexes([self._index], path)

    @classmethod
    def load(cls, path: Path, vectors_VD: Tensor, options: FaissCpuOptions | None = None) -> FaissCpuIndex:
        """Read the index saved at ``path``, whose bytes the caller has verified: FAISS loads most damaged files.

        Raises StoreError if it is unreadable or is not an inner-product index over as many vectors of that width.
        """
        vectors_VD = checked_vectors(vectors_VD)
        return cls.over(read_index(path, vectors_VD), vectors_VD, options, f"index {str(path)!r}")

    @classmethod
    def over(cls, index: Any, vectors_VD: Tensor, options: FaissCpuOptions | None, what: str) -> FaissCpuIndex:
        """Wrap a FAISS index that was read from ``what``. Raises StoreError if it is not one over these vectors."""
        parsed = cls.checked_options(options)
        _check(index, vectors_VD, StoreError, what)
        _set_search_options(index, parsed)
        return cls(index, vectors_VD, parsed)


def sized_factory(factory: str, n_vectors: int, dim: int) -> str:
    """Return the FAISS factory string of a kind over [V, D]; any other string as it is.

    About 4 sqrt(V) lists, a power of two, and at least 39 vectors a list, below which FAISS warns that its k-means has
    too few (autofaiss's rule). Codes take 4 bits for two numbers, where the width allows that.
    """
    n_lists = max(1, min(2 ** round(math.log2(4 * math.sqrt(n_vectors))), n_vectors // 39))
    n_codes = dim // 2 if dim % 2 == 0 else dim
    kinds = {"ivf_flat": f"IVF{n_lists},Flat", "ivf_pq": f"IVF{n_lists},PQ{n_codes}x4fs", "hnsw": "HNSW32"}
    return kinds.get(factory, factory)


def training_part(x_VD: np.ndarray, factory: str) -> np.ndarray:
    """Return evenly spread rows, as many as the lists need: the same ones whenever the same vectors come."""
    lists = re.match(r"IVF(\d+)", factory)
    wanted = MAX_TRAIN_PER_LIST * int(lists[1]) if lists else len(x_VD)
    step = max(1, len(x_VD) // max(wanted, 20_000))
    return x_VD[::step].copy() if step > 1 else x_VD


def import_faiss() -> Any:
    """Return the faiss module. Raises MissingDependencyError with the remedy."""
    try:
        import faiss
    except ImportError as error:
        raise MissingDependencyError(
            f"this index needs FAISS ({error}): pip install faiss-cpu, or use index 'exact'"
        ) from error
    return faiss


def write_indexes(indexes: Iterable[Any], path: Path) -> None:
    """Write FAISS indexes one behind the other. Raises StoreError if that fails.

    Through a Python file: FAISS's own writer only prints to stderr when the last bytes can't be flushed (a full disk).
    """
    faiss = import_faiss()
    try:
        with path.open("wb") as file:
            for index in indexes:
                faiss.write_index(index, faiss.PyCallbackIOWriter(file.write, WRITE_BYTES))
    except (RuntimeError, OSError) as error:
        raise StoreError(f"FAISS can't write {str(path)!r}: {last_words(error)}") from error


@contextmanager
def byte_limit(path: Path) -> Iterator[None]:
    """Limit vectors in a file to the file's length: a damaged length must not allocate FAISS's default of 1 TB."""
    faiss = import_faiss()
    limit = faiss.get_deserialization_vector_byte_limit()
    faiss.set_deserialization_vector_byte_limit(path.stat().st_size)
    try:
        yield
    finally:
        faiss.set_deserialization_vector_byte_limit(limit)


def read_index(path: Path, vectors_VD: Tensor) -> Any:
    """Read a FAISS index. Raises StoreError if it is unreadable or not an inner-product index over such vectors."""
    faiss = import_faiss()
    if not path.is_file():
        raise StoreError(f"there is no index file {str(path)!r}; publish again")
    try:
        with byte_limit(path):
            index = faiss.read_index(str(path))
    except RuntimeError as error:
        raise StoreError(f"FAISS can't read {str(path)!r}: {last_words(error)}") from error
    _check(index, vectors_VD, StoreError, f"index {str(path)!r}")
    return index


def _check(index: Any, vectors_VD: Tensor, error: type[UsageError] | type[StoreError], what: str) -> None:
    faiss = import_faiss()
    given = (index.ntotal, index.d, index.metric_type)
    wanted = (*vectors_VD.shape, faiss.METRIC_INNER_PRODUCT)
    if given != wanted:
        raise error(f"{what} has (vectors, width, metric) = {given}, wanted {wanted}; publish again with another index")


def _set_search_options(index: Any, options: FaissCpuOptions) -> None:
    faiss = import_faiss()
    names = {"nprobe": "nprobe", "ef_search": "efSearch"}
    factory = sized_factory(options.factory, index.ntotal, index.d)
    if options.refine and WHOLE_VECTORS.fullmatch(factory) and not factory.endswith(",RFlat"):
        raise UsageError(
            f"refine = {options.refine} does not apply to factory = {options.factory!r}, which keeps whole vectors; "
            "leave it out"
        )
    if options.factory.endswith("RFlat"):  # FAISS's own refinement, over a copy of the vectors
        names["refine"] = "k_factor_rf"
    for key, name in names.items():
        value = getattr(options, key)
        if value is None:
            continue
        try:
            faiss.ParameterSpace().set_index_parameter(index, name, value)
        except RuntimeError as error:
            raise UsageError(
                f"{key} = {value} does not apply to factory = {options.factory!r}; leave it out"
            ) from error


def last_words(error: BaseException) -> str:
    """Return the message of an error without FAISS's C++ signature and build path."""
    return str(error).rsplit(".cpp:", 1)[-1].partition(": ")[2].strip() or str(error) or type(error).__name__
