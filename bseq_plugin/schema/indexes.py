"""The contract of vector indexes.

Shape letters: B queries, V vectors, D width, k hits of a query, P pairs of a query and a row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from bseq_plugin.schema.part import OptionsT_co, Part


@dataclass(frozen=True)
class IndexCapabilities:
    """What a backend can do; serving does the rest."""

    exact: bool
    device: str = "cpu"  # "cpu" or "cuda"
    max_k: int | None = None  # the largest k of one search, None = no limit
    masks: bool = False  # it has ``search_masked``


@dataclass(frozen=True)
class RowMask:
    """The rows that a masked search may return.

    Attributes:
        allowed_V: bool [V], None = all rows.
        denied: int64 ``(queries_P, rows_P)``, pairs that are left out besides, in any order; None = none.
    """

    allowed_V: Tensor | None = None
    denied: tuple[Tensor, Tensor] | None = None


class VectorIndex(Part[OptionsT_co], ABC):
    """The base of indexes: maximum-inner-product search over row-numbered vectors. It knows no item ids, and filters
    only if it says so.

    ``options`` come from the recipe of ``publish``; vectors and queries are float32 tensors on CPU. ``capabilities``
    of an instance may differ from those of its class where options decide.
    """

    capabilities: IndexCapabilities

    @classmethod
    @abstractmethod
    def build(cls, vectors_VD: Tensor, options: OptionsT_co | None = None) -> Self:
        """Index ``vectors_VD`` (finite, V >= 1)."""

    @abstractmethod
    def search(self, queries_BD: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return ``(scores_Bk float32, rows_Bk int64)``, best first, for 1 <= k <= V. A missing hit has row -1 and
        score -inf.

        Equal scores are in ascending row order where the backend is exact. Raises UsageError for a wrong width,
        k out of range, or NaN in the queries.
        """

    def search_masked(self, queries_BD: Tensor, k: int, mask: RowMask) -> tuple[Tensor, Tensor]:
        """Search as ``search`` among the rows that ``mask`` leaves; asked only of a backend with
        ``capabilities.masks``.
        """
        raise NotImplementedError(f"index {self.name!r} has no masked search: capabilities.masks is False")

    def efforts(self) -> list[dict[str, Any]]:
        """Return the options that say how far a search looks, from quick to thorough; none if there are no such
        options.
        """
        return []

    def with_effort(self, effort: dict[str, Any]) -> Self:
        """Return this index, looking as far as one of ``efforts`` says; it may change and return itself."""
        raise NotImplementedError(f"index {self.name!r} has no efforts to choose from")

    @abstractmethod
    def save(self, path: Path) -> None:
        """Write what is needed beside the vectors to one file; a backend that needs nothing writes no file."""

    @classmethod
    @abstractmethod
    def load(cls, path: Path, vectors_VD: Tensor, options: OptionsT_co | None = None) -> Self:
        """Return the index saved at ``path`` over the same vectors."""
