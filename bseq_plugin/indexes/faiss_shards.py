"""Several FAISS indexes over parts of the rows, searched and merged as one.

Each part is trained, built and searched by itself: building needs the working memory of one part, and the parts are
what a catalogue looks like that several machines hold. With exact parts the answers are those of one index, ties too.

Shape letters: B queries, V vectors, D width, k hits of a query.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from bseq_plugin.errors import StoreError, UsageError
from bseq_plugin.indexes.checks import best_first, checked_queries, checked_vectors
from bseq_plugin.indexes.faiss_cpu import (
    WRITE_BYTES,
    FaissCpuIndex,
    FaissCpuOptions,
    byte_limit,
    import_faiss,
    last_words,
    write_indexes,
)
from bseq_plugin.schema.indexes import IndexCapabilities, VectorIndex


class FaissShardsOptions(FaissCpuOptions):
    """Options of ``faiss_shards``. ``shards``: parts of the rows, one behind the other and equally large. The rest are
    the options of ``faiss_cpu``, for each part; ``ivf_flat`` and ``ivf_pq`` have as many lists as a part needs.
    """

    shards: int = Field(2, ge=1)


class FaissShardsIndex(VectorIndex[FaissShardsOptions]):
    """FAISS indexes over parts of the rows; exact where they are: with the factory ``Flat``, or all lists probed."""

    name = "faiss_shards"
    capabilities = IndexCapabilities(exact=True)  # with the default factory

    def __init__(self, parts: list[FaissCpuIndex], vectors_VD: Tensor, options: FaissShardsOptions) -> None:
        self._parts, self._vectors_VD, self._options = parts, vectors_VD, options
        self.capabilities = IndexCapabilities(exact=all(part.capabilities.exact for part in parts))

    @classmethod
    def build(cls, vectors_VD: Tensor, options: FaissShardsOptions | None = None) -> FaissShardsIndex:
        """Build part after part. Raises as ``FaissCpuIndex.build``, and UsageError for more shards than vectors."""
        vectors_VD, parsed = checked_vectors(vectors_VD), cls.checked_options(options)
        of_parts = _options_of_parts(parsed)
        parts = [FaissCpuIndex.build(part_ND, of_parts) for part_ND in _split(vectors_VD, parsed, UsageError)]
        return cls(parts, vectors_VD, parsed)

    @torch.no_grad()
    def search(self, queries_BD: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return ``(scores_Bk float32, rows_Bk int64)``, best first. See ``VectorIndex``."""
        n_vectors, dim = self._vectors_VD.shape
        queries_BD = checked_queries(queries_BD, k, dim, n_vectors)
        scores, rows, first = [], [], 0
        for part in self._parts:
            scores_Bn, rows_Bn = part.search(queries_BD, min(k, part.n_vectors))
            scores.append(scores_Bn)
            rows.append(torch.where(rows_Bn < 0, rows_Bn, rows_Bn + first))
            first += part.n_vectors
        scores_Bm, rows_Bm = best_first(torch.cat(scores, dim=1), torch.cat(rows, dim=1))
        return scores_Bm[:, :k], rows_Bm[:, :k]

    def efforts(self) -> list[dict[str, Any]]:
        """Return the efforts of a part."""
        return self._parts[0].efforts()

    def with_effort(self, effort: dict[str, Any]) -> FaissShardsIndex:
        """Return the same parts with that effort; they change, see ``FaissCpuIndex.with_effort``."""
        parsed = self.checked_options({**self._options.model_dump(exclude_none=True), **effort})
        return FaissShardsIndex([part.with_effort(effort) for part in self._parts], self._vectors_VD, parsed)

    def save(self, path: Path) -> None:
        """Write the parts, one behind the other, to ``path``. Raises StoreError if that fails."""
        write_indexes([part.faiss_index for part in self._parts], path)

    @classmethod
    def load(cls, path: Path, vectors_VD: Tensor, options: FaissShardsOptions | None = None) -> FaissShardsIndex:
        """Read what ``save`` wrote, whose bytes the caller has verified.

        Raises StoreError if it is unreadable or its parts are not over as many vectors of that width.
        """
        faiss = import_faiss()
        vectors_VD, parsed = checked_vectors(vectors_VD), cls.checked_options(options)
        if not path.is_file():
            raise StoreError(f"there is no index file {str(path)!r}; publish again")
        of_parts, parts = _options_of_parts(parsed), []
        try:
            with byte_limit(path), path.open("rb") as file:
                for part_ND in _split(vectors_VD, parsed, StoreError):
                    read = faiss.read_index(faiss.PyCallbackIOReader(_exactly(file.read), WRITE_BYTES))
                    parts.append(FaissCpuIndex.over(read, part_ND, of_parts, f"index {str(path)!r}"))
                if file.read(1):
                    raise StoreError(f"{str(path)!r} has more than {parsed.shards} shards; publish again")
        except RuntimeError as error:
            raise StoreError(f"FAISS can't read {str(path)!r}: {last_words(error)}") from error
        return cls(parts, vectors_VD, parsed)


def _options_of_parts(options: FaissShardsOptions) -> FaissCpuOptions:
    return FaissCpuOptions(**options.model_dump(exclude={"shards"}))


def _split(
    vectors_VD: Tensor, options: FaissShardsOptions, error: type[UsageError] | type[StoreError]
) -> tuple[Tensor, ...]:
    """Return views of the rows of each part."""
    if options.shards > len(vectors_VD):
        raise error(f"shards = {options.shards}, but there are {len(vectors_VD)} vectors; take fewer shards")
    return torch.tensor_split(vectors_VD, options.shards)


def _exactly(read: Callable[[int], bytes]) -> Callable[[int], bytes]:
    """Raise an error at the end of a file, where FAISS would ask for ever for the bytes that it did not get."""

    def more(n_bytes: int) -> bytes:
        chunk = read(n_bytes)
        if n_bytes and not chunk:
            raise RuntimeError("the file ends too early")
        return chunk

    return more
