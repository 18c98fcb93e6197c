"""``index="auto"``: the first index, by cost of building, that meets a stated target; measured on this machine.

Shape letters: Q queries, V vectors, D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bseq_plugin.errors import UsageError
from bseq_plugin.indexes.exact import ExactIndex
from bseq_plugin.publishing.measure import DEFAULT_KINDS, Measured, measured_kinds, true_rows
from bseq_plugin.schema.indexes import VectorIndex

MAX_EXACT_ITEMS = 1_000_000  # up to here exact search is quick enough, unless a latency is asked for


@dataclass(frozen=True)
class IndexTarget:
    """What the index has to reach.

    Attributes:
        recall: at ``k``, of the true best, with real interests as queries.
        memory_mb: of the index, beside the item vectors; None = no limit.
        p99_ms: of a single query; None = no limit.
    """

    recall: float = 0.99
    k: int = 100
    memory_mb: float | None = None
    p99_ms: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.recall <= 1:
            raise UsageError(f"recall = {self.recall!r}; give a share, more than 0 and at most 1")
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise UsageError(f"k = {self.k!r}; give a whole number of 1 or more")
        for name in ("memory_mb", "p99_ms"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UsageError(f"{name} = {value!r}; give a number above 0, or leave it out")

    def misses(self, measured: Measured, n_vectors: int) -> list[str]:
        """Return what of the target is missed, in words."""
        megabytes, p99 = measured.bytes_per_vector * n_vectors / 2**20, measured.latency_ms["1"]["p99"]
        rows = [
            (measured.recall >= self.recall, f"recall@{measured.k} {measured.recall:.4f} < {self.recall}"),
            (self.memory_mb is None or megabytes <= self.memory_mb, f"{megabytes:.0f} MB > {self.memory_mb}"),
            (self.p99_ms is None or p99 <= self.p99_ms, f"p99 {p99:.2f} ms > {self.p99_ms}"),
        ]
        return [text for met, text in rows if not met]


@dataclass(frozen=True)
class Choice:
    """The index, ready built, its name and options, and everything that was measured on the way."""

    index: VectorIndex
    name: str
    options: dict[str, Any]
    tried: tuple[Measured, ...] = ()


def choose_index(
    vectors_VD: Tensor,
    queries_QD: Tensor,
    target: IndexTarget | None = None,
    kinds: tuple[tuple[str, Mapping[str, Any]], ...] = DEFAULT_KINDS,
) -> Choice:
    """Return exact search up to a million vectors if only recall is asked for; else the first measured to be enough.

    Raises:
        UsageError: none of them meets the target; the message says what each reached.
    """
    wanted = target or IndexTarget()
    n_vectors = len(vectors_VD)
    unlimited = wanted.memory_mb is None and wanted.p99_ms is None
    if len(queries_QD) == 0 or (unlimited and n_vectors <= MAX_EXACT_ITEMS):
        return Choice(ExactIndex.build(vectors_VD), ExactIndex.name, {})
    if unlimited:  # beyond a million, exact search would always win on recall, and be slow
        kinds = tuple(kind for kind in kinds if kind[0] != ExactIndex.name)
    reasons: list[str] = []
    tried: list[Measured] = []
    true_Qk = true_rows(vectors_VD, queries_QD, wanted.k)
    for index, measured in measured_kinds(kinds, vectors_VD, queries_QD, true_Qk, reasons):
        tried.append(measured)
        misses = wanted.misses(measured, n_vectors)
        if not misses:
            return Choice(index, measured.index, measured.options, tuple(tried))
        reasons.append(f"{measured.label}: {', '.join(misses)}")
    raise UsageError(f"no index meets {wanted}: " + "; ".join(reasons) + ". Lower the target, or name an index")
