"""How each kind of GPU index is made: on the CPU and copied over, or on the GPU itself.

FAISS's cloner takes flat and inverted-list indexes; HNSW, fast-scan codes and refinement are CPU only (faiss 1.15,
``GpuCloner.cpp``), so they are not offered. CAGRA is built on the GPU alone.

Shape letters: V vectors, D width.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from bseq_plugin.indexes.faiss_cpu import import_faiss, read_index, sized_factory, training_part

if TYPE_CHECKING:
    from bseq_plugin.indexes.faiss_gpu import FaissGpuOptions


def cpu_part(vectors_VD: Tensor, options: FaissGpuOptions, path: Path | None) -> Any:
    """The index on the CPU that is copied to the GPU: full, or for ``build_on="gpu"`` empty; None for CAGRA.

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
    """The index on the GPU; called in the thread that owns ``resources``."""
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
