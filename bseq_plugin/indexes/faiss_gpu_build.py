"""How each kind of GPU index is made: on the CPU and copied over, or on the GPU itself.

FAISS's cloner takes flat and inverted-list indexes; HNSW, fast-scan codes and refinement are CPU only (faiss 1.15,
``GpuCloner.cpp``), so they are not offered. CAGRA is built on the GPU alone.

Shape letters: V vectors, D width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from bseq_plugin.indexes.faiss_cpu import import_faiss, read_index, sized_factory, training_part
from bseq_plugin.schema.options import PartOptions

MAX_K = 2048  # of classic GPU FAISS


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


def cpu_part(vectors_VD: Tensor, options: FaissGpuOptions, path: Path | None) -> Any:
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


def on_gpu(index: Any, vectors_VD: Tensor, options: FaissGpuOptions, resources: Any) -> Any:
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
