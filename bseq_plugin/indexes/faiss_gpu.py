"""FAISS on one GPU, owned by one thread: flat (exact), inverted lists, or the CAGRA graph where the build has it.

Classic GPU FAISS is not thread-safe even for reads, its resources belong to the thread that made them, and it ignores
id selectors silently: so one worker does everything, and all filtering is done by the retrieval layer.

Shape letters: B queries, V vectors, D width, k hits of a query.
"""

from __future__ import annotations

import os
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bseq_plugin.errors import MissingDependencyError, UsageError
from bseq_plugin.indexes import faiss_gpu_build
from bseq_plugin.indexes.checks import best_first, checked_queries, checked_vectors, inner_products, search_with_ties
from bseq_plugin.indexes.exact import ExactIndex
from bseq_plugin.indexes.faiss_cpu import import_faiss, write_index
from bseq_plugin.indexes.faiss_gpu_build import MAX_K, FaissGpuOptions
from bseq_plugin.schema.indexes import IndexCapabilities, VectorIndex

_workers: dict[tuple[int, int], ThreadPoolExecutor] = {}
_workers_lock = threading.Lock()


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
            on_cpu = faiss_gpu_build.cpu_part(vectors_VD, parsed, path)
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
            write_index(self._on_cpu, path)

    @classmethod
    def load(cls, path: Path, vectors_VD: Tensor, options: FaissGpuOptions | None = None) -> FaissGpuIndex:
        """Put the index saved at ``path``, whose bytes the caller has verified, on the GPU; without a file build it
        anew.
        """
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
    """Return the one thread that owns a GPU's resources in this process (the pid keeps a forked child from inheriting
    it).
    """
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
    return faiss_gpu_build.on_gpu(on_cpu, vectors_VD, options, resources)
