"""How good, quick and large an index is: measured with real interests as queries, never taken for granted.

Shape letters: Q queries, V vectors, D width, k hits of a query.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bseq_plugin.errors import MissingDependencyError, UsageError
from bseq_plugin.indexes.exact import ExactIndex
from bseq_plugin.plugins import plugin_manager
from bseq_plugin.publishing.history_parts import spread
from bseq_plugin.schema.indexes import VectorIndex

BATCHES = (1, 256)
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
SINGLE_CALLS, BATCH_CALLS = 200, 12
# what is measured unless something else is asked for: name, options
DEFAULT_KINDS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("exact", {}),
    ("faiss_cpu", {"factory": "ivf_flat"}),
    ("faiss_cpu", {"factory": "hnsw"}),
    ("faiss_cpu", {"factory": "ivf_pq"}),
)


@dataclass(frozen=True)
class Measured:
    """One index with one set of options.

    Attributes:
        recall: share of the true k best that it finds, mean over the queries.
        build_seconds: wall time of training and filling.
        bytes_per_vector: of what is searched; an index that keeps the vectors elsewhere counts what it adds to them.
        latency_ms: batch size ("1", "256") -> "p50", "p95", "p99" of a call, milliseconds.
        task: metrics of the end task, if a test log was given; see ``index_report``.
    """

    index: str
    options: dict[str, Any]
    k: int
    recall: float
    build_seconds: float
    bytes_per_vector: float
    latency_ms: dict[str, dict[str, float]]
    task: dict[str, float] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Return the name and options in a few words."""
        options = " ".join(str(value) if key == "factory" else f"{key}={value}" for key, value in self.options.items())
        return f"{self.index} {options}".strip()


def recall(found_Qk: Tensor, wanted_Qk: Tensor) -> float:
    """Share of the wanted rows that were found; 1 for no queries."""
    if wanted_Qk.numel() == 0:
        return 1.0
    hits = [
        (wanted[:, :, None] == answer[:, None, :]).any(2).float().sum()
        for wanted, answer in zip(torch.split(wanted_Qk, 64), torch.split(found_Qk, 64), strict=True)
    ]
    return float(torch.stack(hits).sum() / wanted_Qk.numel())


def spread_queries(interests_UKD: Tensor, lengths_U: np.ndarray, n: int) -> Tensor:
    """Return float32 [Q, D], interests of at most ``n`` users with events, evenly spread over the users."""
    chosen = spread(np.flatnonzero(lengths_U), n)
    return interests_UKD[torch.from_numpy(chosen)].flatten(0, 1)


def true_rows(vectors_VD: Tensor, queries_QD: Tensor, k: int) -> Tensor:
    """Return int64 [Q, k], the rows that exact search gives."""
    return ExactIndex.build(vectors_VD).search(queries_QD, min(k, len(vectors_VD)))[1]


def built(name: str, options: Mapping[str, Any], vectors_VD: Tensor) -> tuple[VectorIndex, float]:
    """Return an index and the seconds it took to build. Raises as ``VectorIndex.build``."""
    started = time.perf_counter()
    part: type[VectorIndex] = plugin_manager().part("index", name)
    index = part.build(vectors_VD, part.checked_options(options))
    return index, time.perf_counter() - started


def variants(index: VectorIndex, options: Mapping[str, Any]) -> Iterator[tuple[VectorIndex, dict[str, Any]]]:
    """Yield the index at each of its efforts, from quick to thorough; the index itself if it has none."""
    efforts = [effort for effort in index.efforts() if not set(effort) & set(options)]
    for effort in efforts or [{}]:
        yield (index.with_effort(effort) if effort else index), {**options, **effort}


def measure(
    index: VectorIndex,
    options: Mapping[str, Any],
    queries_QD: Tensor,
    true_Qk: Tensor,
    build_seconds: float,
    bytes_per_vector: float,
) -> Measured:
    """Return recall and latency of an index at its present options. ``true_Qk``: of ``true_rows``."""
    k = true_Qk.shape[1]
    found_Qk = torch.cat([index.search(part_QD, k)[1] for part_QD in torch.split(queries_QD, max(BATCHES))])
    latency = {str(batch): _latency(index, queries_QD, k, batch) for batch in BATCHES}
    return Measured(index.name, dict(options), k, recall(found_Qk, true_Qk), build_seconds, bytes_per_vector, latency)


def measured_kinds(
    kinds: Iterable[tuple[str, Mapping[str, Any]]],
    vectors_VD: Tensor,
    queries_QD: Tensor,
    true_Qk: Tensor,
    skipped: list[str],
    progress: Callable[[str], None] = lambda _: None,
) -> Iterator[tuple[VectorIndex, Measured]]:
    """Yield each kind of index, built here, at each of its efforts, with what was measured of it.

    An index that is yielded looks so far until the next one is asked for. ``skipped`` gets a line for each kind that
    can't be built here; ``progress`` is called with the name of each before it is built.
    """
    for name, options in kinds:
        progress(" ".join([name, *map(str, options.values())]))
        try:
            index, seconds = built(name, options, vectors_VD)
        except (MissingDependencyError, UsageError) as error:
            skipped.append(f"{name} {dict(options)}: {error}")
            continue
        size = size_of(index, vectors_VD)
        for variant, chosen in variants(index, options):
            yield variant, measure(variant, chosen, queries_QD, true_Qk, seconds, size)


def size_of(index: VectorIndex, vectors_VD: Tensor) -> float:
    """Return the bytes a vector of what the index writes, or of the vectors it searches if it writes nothing."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index"
        index.save(path)
        written = path.stat().st_size if path.is_file() else 0
    return written / len(vectors_VD) if written else float(vectors_VD.shape[1] * 4)


def _latency(index: VectorIndex, queries_QD: Tensor, k: int, batch: int) -> dict[str, float]:
    n_calls = SINGLE_CALLS if batch == 1 else BATCH_CALLS
    repeated = queries_QD[torch.arange(batch * min(n_calls, max(1, len(queries_QD)))) % len(queries_QD)]
    parts, seconds = torch.split(repeated, batch), []
    index.search(parts[0], k)  # the first call pays for what is made once
    for number in range(n_calls):
        started = time.perf_counter()
        index.search(parts[number % len(parts)], k)
        seconds.append(time.perf_counter() - started)
    return {name: 1e3 * float(np.quantile(seconds, share)) for name, share in QUANTILES.items()}
