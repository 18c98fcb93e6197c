"""FAISS on one GPU, owned by one thread: flat (exact), inverted lists, or the CAGRA graph where the build has it.

Classic GPU FAISS is not thread-safe even for reads, its resources belong to the thread that made them, and it ignores
id selectors silently: so one worker does everything, and all filtering is done by the retrieval layer.

FAISS's cloner takes flat and inverted-list indexes; HNSW, fast-scan codes and refinement are CPU only (faiss 1.15,
``GpuCloner.cpp``), so they are not offered. CAGRA is built on the GPU alone.

Shape letters: B queries, V vectors, D width, k hits of a query.
"""

from __future__ import annotations

import os
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from bseq_plugin.errors import MissingDependencyError, UsageError
from bseq_plugin.indexes.checks import best_first, checked_queries, checked_vectors, inner_products, search_with_ties
from bseq_plugin.indexes.exact import ExactIndex
from bseq_plugin.indexes.faiss_cpu import import_faiss, read_index, sized_factory, training_part, write_indexes
from bseq_plugin.schema.indexes import IndexCapabilities, VectorIndex
from bseq_plugin.schema.options import PartOptions

MAX_K = 2048  # of classic GPU FAISS
_workers: dict[tuple[int, int], ThreadPoolExecutor] = {}
_workers_lock = threading.Lock()


class FaissGpuOptions(PartOptions):
    """``kind``: ``flat``, ``ivf_flat``, or ``cagra``, a graph that only cuVS builds of FAISS have.

    ``nprobe``, ``n_lists``: of ``ivf_flat`` (default: about 4 sqrt(V) lists). ``build_on``: where an ``ivf_flat`` is
    trained and filled. ``device``: number of the GPU. ``memory_mb``: refuse an index that needs more than that.
    ``temp_memory_mb``: cap of the scratch memory. ``float16``: half the memory.
    """

    kind: Literal["flat", "ivf_flat", "cagra"] = "flat"
    nprobe: int = Field(32, ge=1, le=MAX_K)
    n_lists: int | None = Field(None, ge=1)
    build_on: Literal["cpu", "gpu"] = "cpu"
    device: int = Field(0, ge=0)
    memory_mb: int | None = Field(None, ge=1)
    temp_memory_mb: int = Field(256, ge=1)
    float16: bool = False


class FaissGpuIndex(VectorIndex[FaissGpuOptions]):
    """An inner-product index on a GPU. If the GPU fails during a search it warns once and goes on on the CPU, exactly.

    Equal scores that reach beyond place 2048 are in arbitrary order. ``ivf_flat`` built on the CPU keeps a file that
    opens anywhere; the others need no file: they are rebuilt from the vectors.
    """

    name = "faiss_gpu"
    capabilities = IndexCapabilities(exact=True, device="cuda", max_k=MAX_K)  # with kind "flat"

    def __init__(self, index: Any, worker: ThreadPoolExecutor, vectors_VD: Tensor, exact: bool, on_cpu: Any) -> None:
        self._index = index
        self._worker = worker
        self._vectors_VD = vectors_VD
        self._on_cpu = on_cpu  # what ``save`` writes
        self._fallback: ExactIndex | None = None
        self.capabilities = IndexCapabilities(exact=exact, device="cuda", max_k=MAX_K)

    @staticmethod
    def why_not(kind: str = "flat") -> str | None:
        """Say why this machine can't use the backend; None if it can."""
        try:
            faiss = import_faiss()
        except MissingDependencyError as error:
            return str(error)
        # the CPU wheel has get_num_gpus too, but not the resources
        if not hasattr(faiss, "StandardGpuResources"):
            return "the installed FAISS is the CPU build: uninstall faiss-cpu, then pip install 'bseq-plugin[gpu]'"
        if kind == "cagra" and not hasattr(faiss, "GpuIndexCagra"):
            return "this FAISS has no CAGRA: install faiss-gpu-cuvs, or use kind 'flat' or 'ivf_flat'"
        return None if faiss.get_num_gpus() > 0 else "FAISS sees no GPU: check nvidia-smi and CUDA_VISIBLE_DEVICES"

    @classmethod
    def build(cls, vectors_VD: Tensor, options: FaissGpuOptions | None = None) -> FaissGpuIndex:
        """Build as ``options`` say and put the index on the GPU.

        Raises UsageError for vectors that are not finite, a GPU that is not there or too small,
        MissingDependencyError without a GPU build of FAISS.
        """
        return cls._make(vectors_VD, options, None)

    @classmethod
    def _make(cls, vectors_VD: Tensor, options: FaissGpuOptions | None, path: Path | None) -> FaissGpuIndex:
        vectors_VD, parsed = checked_vectors(vectors_VD), cls.checked_options(options)
        _import_gpu_faiss(parsed)
        size = vectors_VD.numel() * (2 if parsed.float16 else 4) / 2**20
        if parsed.memory_mb is not None and size > parsed.memory_mb:
            raise UsageError(
                f"an index of {size:.0f} MB is over memory_mb = {parsed.memory_mb}; use float16 or 'exact'"
            )
        worker = _worker(parsed.device)
        try:
            on_cpu = _cpu_part(vectors_VD, parsed, path)
            index = worker.submit(_to_gpu, on_cpu, vectors_VD, parsed).result()
        except (RuntimeError, AssertionError) as error:
            raise UsageError(
                f"an index of {size:.0f} MB can't be put on GPU {parsed.device}: {error}. Use float16 or index 'exact'"
            ) from error
        keeps_file = parsed.kind == "ivf_flat" and parsed.build_on == "cpu"
        return cls(index, worker, vectors_VD, parsed.kind == "flat", on_cpu if keeps_file else None)

    @torch.no_grad()
    def search(self, queries_BD: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return ``(scores_Bk float32, rows_Bk int64)``, best first; safe from any thread. See ``VectorIndex``."""
        n_vectors, dim = self._vectors_VD.shape
        queries_BD = checked_queries(queries_BD, k, dim, n_vectors, MAX_K)
        if queries_BD.shape[0] == 0:
            return torch.empty(0, k), torch.empty(0, k, dtype=torch.int64)
        if self._fallback is None:
            try:
                if self.capabilities.exact:
                    return search_with_ties(self._search, queries_BD, k, min(n_vectors, MAX_K))
                _, rows_Bk = self._search(queries_BD, k)
                return best_first(inner_products(queries_BD, self._vectors_VD, rows_Bk), rows_Bk)
            except RuntimeError as error:  # out of memory, or the device is lost
                warnings.warn(f"GPU search failed ({error}); going on with exact search on the CPU", stacklevel=2)
                self._fallback = ExactIndex.build(self._vectors_VD)
        return self._fallback.search(queries_BD, k)

    def _search(self, queries_BD: Tensor, k: int) -> tuple[Tensor, Tensor]:
        scores_Bk, rows_Bk = self._worker.submit(self._index.search, queries_BD.numpy(), k).result()
        rows_Bk = torch.from_numpy(rows_Bk)
        return torch.from_numpy(scores_Bk).masked_fill(rows_Bk < 0, -torch.inf), rows_Bk

    def save(self, path: Path) -> None:
        """Write the CPU form of an ``ivf_flat`` built on the CPU, else nothing: a store published with a GPU opens
        anywhere.

        Raises StoreError if writing fails.
        """
        if self._on_cpu is not None:
            write_indexes([self._on_cpu], path)

    @classmethod
    def load(cls, path: Path, vectors_VD: Tensor, options: FaissGpuOptions | None = None) -> FaissGpuIndex:
        """Put the index saved at ``path``, with bytes that are verified, on the GPU; without a file build it anew."""
        return cls._make(vectors_VD, options, path if path.is_file() else None)


def _import_gpu_faiss(options: FaissGpuOptions) -> Any:
    reason = FaissGpuIndex.why_not(options.kind)
    if reason is not None:
        raise MissingDependencyError(f"index 'faiss_gpu' is not usable here: {reason}; or use index 'exact'")
    faiss = import_faiss()
    if options.device >= faiss.get_num_gpus():
        raise UsageError(f"device = {options.device}; this machine has {faiss.get_num_gpus()} GPUs, counted from 0")
    return faiss


def _worker(device: int) -> ThreadPoolExecutor:
    """Return the one thread that owns a GPU's resources in this process; the pid: no forked child inherits it."""
    with _workers_lock:
        key = (device, os.getpid())
        if key not in _workers:
            _workers[key] = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"bseq-faiss-gpu{device}")
        return _workers[key]


@cache
def _resources(device: int, pid: int) -> Any:
    """Make the scratch memory of a GPU, in the worker and once: it takes about 0.1 s."""
    return import_faiss().StandardGpuResources()


def _to_gpu(on_cpu: Any, vectors_VD: Tensor, options: FaissGpuOptions) -> Any:
    """Copy an index to the GPU; runs in the worker, which owns the resources."""
    resources = _resources(options.device, os.getpid())
    resources.setTempMemory(options.temp_memory_mb * 2**20)
    return _on_gpu(on_cpu, vectors_VD, options, resources)


def _cpu_part(vectors_VD: Tensor, options: FaissGpuOptions, path: Path | None) -> Any:
    """Return the index on the CPU that is copied to the GPU: full, or for ``build_on="gpu"`` empty; None for CAGRA.

    ``path``: a saved index, read instead of built. Raises StoreError if it does not fit the vectors.
    """
    faiss = import_faiss()
    if options.kind == "cagra":
        return None
    if options.kind == "flat":
        flat = faiss.IndexFlatIP(vectors_VD.shape[1])
        flat.add(vectors_VD.numpy())
        return flat
    if path is not None:
        index = read_index(path, vectors_VD)
    else:
        factory = sized_factory("ivf_flat", *vectors_VD.shape)
        if options.n_lists is not None:
            factory = f"IVF{options.n_lists},Flat"
        index = faiss.index_factory(vectors_VD.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        if options.build_on == "cpu":
            index.train(training_part(vectors_VD.numpy(), factory))
            index.add(vectors_VD.numpy())
    index.nprobe = min(options.nprobe, index.nlist)
    return index


def _on_gpu(index: Any, vectors_VD: Tensor, options: FaissGpuOptions, resources: Any) -> Any:
    """Return the index on the GPU; called in the thread that owns ``resources``."""
    faiss = import_faiss()
    if options.kind == "cagra":
        settings = faiss.GpuIndexCagraConfig()
        settings.device = options.device
        graph = faiss.GpuIndexCagra(resources, vectors_VD.shape[1], faiss.METRIC_INNER_PRODUCT, settings)
        graph.train(vectors_VD.numpy())
        return graph
    cloning = faiss.GpuClonerOptions()
    cloning.useFloat16 = options.float16
    copied = faiss.index_cpu_to_gpu(resources, options.device, index, cloning)
    if options.kind == "ivf_flat" and options.build_on == "gpu":
        copied.train(vectors_VD.numpy())
        copied.add(vectors_VD.numpy())
    return copied
