"""FAISS on one GPU: exact search with a flat index, owned by one thread.

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
from pydantic import Field
from torch import Tensor

from bseq_plugin.errors import MissingDependencyError, UsageError
from bseq_plugin.indexes.checks import checked_options, checked_queries, checked_vectors, search_with_ties
from bseq_plugin.indexes.exact import ExactIndex
from bseq_plugin.indexes.faiss_cpu import import_faiss
from bseq_plugin.schema.options import PartOptions
from bseq_plugin.schema.parts import IndexCapabilities, VectorIndex

MAX_K = 2048  # of classic GPU FAISS

_workers: dict[tuple[int, int], ThreadPoolExecutor] = {}
_workers_lock = threading.Lock()


class FaissGpuOptions(PartOptions):
    """``device``: number of the GPU. ``temp_memory_mb``: cap of the scratch memory. ``float16``: half the memory."""

    device: int = Field(0, ge=0)
    temp_memory_mb: int = Field(256, ge=1)
    float16: bool = False


class FaissGpuIndex(VectorIndex):
    """A flat inner-product index on a GPU. If the GPU fails during a search it warns once and goes on on the CPU.

    Equal scores that reach beyond place 2048 are in arbitrary order. Needs no file: it is rebuilt from the vectors.
    """

    name = "faiss_gpu"
    Options = FaissGpuOptions
    capabilities = IndexCapabilities(exact=True, device="cuda", max_k=MAX_K)

    def __init__(self, index: Any, worker: ThreadPoolExecutor, vectors_VD: Tensor) -> None:
        self._index = index
        self._worker = worker
        self._vectors_VD = vectors_VD
        self._fallback: ExactIndex | None = None

    @staticmethod
    def why_not() -> str | None:
        """Why this machine can't use the backend, None if it can."""
        try:
            faiss = import_faiss()
        except MissingDependencyError as error:
            return str(error)
        # the CPU wheel has get_num_gpus too, but not the resources
        if not hasattr(faiss, "StandardGpuResources"):
            return "the installed FAISS is the CPU build: uninstall faiss-cpu, then pip install 'bseq-plugin[gpu]'"
        return None if faiss.get_num_gpus() > 0 else "FAISS sees no GPU: check nvidia-smi and CUDA_VISIBLE_DEVICES"

    @classmethod
    def build(cls, vectors_VD: Tensor, options: Any = None) -> FaissGpuIndex:
        """Fill a flat index on CPU and copy it to the GPU.

        Raises UsageError for vectors that are not finite, a GPU that is not there or too small,
        MissingDependencyError without a GPU build of FAISS.
        """
        vectors_VD, parsed = checked_vectors(vectors_VD), checked_options(cls.Options, options, cls.name)
        faiss = _import_gpu_faiss(parsed.device)
        flat = faiss.IndexFlatIP(vectors_VD.shape[1])
        flat.add(vectors_VD.numpy())
        worker = _worker(parsed.device)
        try:
            index = worker.submit(_to_gpu, flat, parsed).result()
        except RuntimeError as error:
            size = vectors_VD.numel() * (2 if parsed.float16 else 4) / 2**20
            raise UsageError(
                f"an index of {size:.0f} MB can't be put on GPU {parsed.device}: {error}. Use float16 or index 'exact'"
            ) from error
        return cls(index, worker, vectors_VD)

    @torch.no_grad()
    def search(self, queries_BD: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """``(scores_Bk float32, rows_Bk int64)``, best first. Safe to call from any thread. See ``VectorIndex``."""
        n_vectors, dim = self._vectors_VD.shape
        queries_BD = checked_queries(queries_BD, k, dim, n_vectors, MAX_K)
        if queries_BD.shape[0] == 0:
            return torch.empty(0, k), torch.empty(0, k, dtype=torch.int64)
        if self._fallback is None:
            try:
                return search_with_ties(self._search, queries_BD, k, min(n_vectors, MAX_K))
            except RuntimeError as error:  # out of memory, or the device is lost
                warnings.warn(f"GPU search failed ({error}); going on with exact search on the CPU", stacklevel=2)
                self._fallback = ExactIndex.build(self._vectors_VD)
        return self._fallback.search(queries_BD, k)

    def _search(self, queries_BD: Tensor, k: int) -> tuple[Tensor, Tensor]:
        scores_Bk, rows_Bk = self._worker.submit(self._index.search, queries_BD.numpy(), k).result()
        rows_Bk = torch.from_numpy(rows_Bk)
        return torch.from_numpy(scores_Bk).masked_fill(rows_Bk < 0, -torch.inf), rows_Bk

    def save(self, path: Path) -> None:
        """Nothing: a store published with a GPU opens anywhere."""

    @classmethod
    def load(cls, path: Path, vectors_VD: Tensor, options: Any = None) -> FaissGpuIndex:
        """The same as ``build``; ``path`` is not read."""
        return cls.build(vectors_VD, options)


def _import_gpu_faiss(device: int) -> Any:
    reason = FaissGpuIndex.why_not()
    if reason is not None:
        raise MissingDependencyError(f"index 'faiss_gpu' is not usable here: {reason}; or use index 'exact'")
    faiss = import_faiss()
    if device >= faiss.get_num_gpus():
        raise UsageError(f"device = {device}; this machine has {faiss.get_num_gpus()} GPUs, counted from 0")
    return faiss


def _worker(device: int) -> ThreadPoolExecutor:
    """The one thread that owns a GPU's resources in this process (the pid keeps a forked child from inheriting it)."""
    with _workers_lock:
        key = (device, os.getpid())
        if key not in _workers:
            _workers[key] = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"bseq-faiss-gpu{device}")
        return _workers[key]


@cache
def _resources(device: int, pid: int) -> Any:
    """Made in the worker, once: it takes about 0.1 s and holds the scratch memory."""
    return import_faiss().StandardGpuResources()


def _to_gpu(flat: Any, options: FaissGpuOptions) -> Any:
    faiss = import_faiss()
    resources = _resources(options.device, os.getpid())
    resources.setTempMemory(options.temp_memory_mb * 2**20)
    cloning = faiss.GpuClonerOptions()
    cloning.useFloat16 = options.float16
    return faiss.index_cpu_to_gpu(resources, options.device, flat, cloning)
