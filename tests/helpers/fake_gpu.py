"""A stand-in for GPU builds of FAISS, on machines without a GPU."""

import threading
import types

import numpy as np


class FakeGpu:
    """A module that looks like GPU FAISS and refuses what the real one can't do (faults.md 0.1, 0.7; facts.md 1.2)."""

    def __init__(self, n_gpus: int = 1, memory: int = 2**30, cagra: bool = False) -> None:
        import faiss

        self.memory = memory
        self.n_resources = 0
        self.out_of_memory = False  # set during a test: the next search fails
        self.module = types.ModuleType("faiss")
        self.module.__dict__.update(
            {
                n: getattr(faiss, n)
                for n in (
                    "IndexFlatIP", "IndexFlat", "IndexIVFFlat", "METRIC_INNER_PRODUCT", "index_factory", "read_index",
                    "write_index", "PyCallbackIOWriter", "get_deserialization_vector_byte_limit",
                    "set_deserialization_vector_byte_limit",
                )
            }
        )  # fmt: skip
        self.module.get_num_gpus = lambda: n_gpus
        self.module.StandardGpuResources = lambda: FakeResources(self)
        self.module.GpuClonerOptions = types.SimpleNamespace
        self.module.index_cpu_to_gpu = self.index_cpu_to_gpu
        if cagra:
            self.module.GpuIndexCagraConfig = types.SimpleNamespace
            self.module.GpuIndexCagra = lambda resources, d, metric, settings: FakeCagra(
                self, resources, faiss.IndexHNSWFlat(d, 32, metric)
            )

    def index_cpu_to_gpu(self, resources, device, index, options=None):
        resources.check_thread()
        if not isinstance(index, self.module.IndexFlat | self.module.IndexIVFFlat):
            raise RuntimeError("This index type is not implemented on GPU.")
        if index.ntotal * index.d * 4 > self.memory:
            raise RuntimeError("Error: cudaMalloc error out of memory")
        return FakeGpuFlat(self, resources, index)


class FakeResources:
    def __init__(self, gpu):
        self.thread = threading.get_ident()
        self.temp_memory = None
        gpu.n_resources += 1

    def check_thread(self):
        if threading.get_ident() != self.thread:
            raise SystemError("GPU resources used by another thread than the one that made them")

    def setTempMemory(self, size):
        self.check_thread()
        self.temp_memory = size


class FakeGpuFlat:
    """No ``remove_ids``, no ``add_with_ids``; ``params`` with a selector is accepted and ignored, as on a GPU."""

    def train(self, x):
        self._resources.check_thread()
        self._index.train(x)

    def add(self, x):
        self._resources.check_thread()
        self._index.add(x)

    def __init__(self, gpu, resources, index):
        self._gpu, self._resources, self._index = gpu, resources, index
        self.d, self.ntotal, self.metric_type = index.d, index.ntotal, index.metric_type

    def search(self, x, k, params=None):
        self._resources.check_thread()
        if self._gpu.out_of_memory:
            raise RuntimeError("Error: cudaMalloc error out of memory")
        if k > 2048:
            raise RuntimeError("GPU index only supports min/max-K selection up to 2048")
        if x.dtype != np.float32 or not x.flags.c_contiguous or x.ndim != 2 or x.shape[1] != self.d:
            raise SystemError("GPU search needs contiguous float32 of the right width")
        return self._index.search(x, k)


class FakeCagra(FakeGpuFlat):
    """Built by one call of ``train``; nothing can be added afterwards."""

    def train(self, x):
        super().train(x)
        super().add(x)

    def add(self, x):
        raise RuntimeError("adding vectors is not supported by GpuIndexCagra")
