"""What several test folders share: a tiny log, a recipe for it, and one finished run."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import types
from pathlib import Path

import faiss
import numpy as np
import pandas as pd
import pytest
import torch

from bseq_plugin.testing.commands import command_of

bseq = command_of()
START_US = 1_600_000_000_000_000
DAY_US = 86_400_000_000


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """The matrices of the tests are tiny: more than one thread, in torch or in FAISS, only costs."""
    before = torch.get_num_threads(), faiss.omp_get_max_threads()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    yield
    torch.set_num_threads(before[0])
    faiss.omp_set_num_threads(before[1])


@pytest.fixture(scope="session")
def make_frame():
    """A function that makes a log of mostly cyclic histories (item i is followed by i + 1), one row an event."""

    def make(n_users=60, n_items=30, seed=0, days=90):
        random = np.random.default_rng(seed)
        rows = []
        for user in range(n_users):
            n_events, first = int(random.integers(5, 15)), int(random.integers(n_items))
            times = np.sort(random.integers(0, days * 86_400, n_events)) * 1_000_000 + START_US
            for place, time in enumerate(times):
                item = (first + place) % n_items if random.random() < 0.9 else int(random.integers(n_items))
                rows.append((user * 3 + 1, item * 10 + 5, int(time), ("buy", "view")[int(random.integers(2))]))
        frame = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp", "event_type"])
        frame["timestamp"] = pd.to_datetime(frame["timestamp"], unit="us", utc=True)
        return frame.sort_values("timestamp", kind="stable", ignore_index=True)

    return make


@pytest.fixture(scope="session")
def tiny_frame(make_frame):
    """60 users, 30 items, 90 days; nobody may change it."""
    return make_frame()


@pytest.fixture(scope="session")
def tiny_source(tiny_frame, tmp_path_factory):
    """The tiny log as a Parquet file."""
    path = tmp_path_factory.mktemp("source") / "events.parquet"
    tiny_frame.to_parquet(path)
    return path


TINY = {
    "encoder": {"max_length": 10, "n_blocks": 1, "n_heads": 2, "feed_forward": 16},
    "vectors": {"dim": 8},
    "training": {"epochs": 2, "batch": {"users": 16}},
}


@pytest.fixture(scope="session")
def tiny_recipe():
    """A causal encoder that trains on the tiny log in a fraction of a second."""
    from bseq_plugin.recipe.recipe import Recipe

    return Recipe(**TINY)


def dotted(values, prefix=""):
    """``(dotted key, value)`` of all leaves of nested settings."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@pytest.fixture(scope="session")
def tiny_settings():
    """``tiny_recipe`` as arguments of the command line."""
    return [word for key, value in dotted(TINY) for word in ("--set", f"{key}={value}")]


@pytest.fixture(scope="session")
def tiny_run(tiny_frame, tiny_recipe, tmp_path_factory):
    """A finished run of the tiny recipe on the tiny log, leave-one-out; nobody may change it."""
    import torch

    from bseq_plugin.data.events import Events
    from bseq_plugin.training.train import train

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run = train(Events.from_frame(tiny_frame), tiny_recipe, tmp_path_factory.mktemp("tiny") / "run", progress=False)
    torch.set_num_threads(threads)
    return run.path


@pytest.fixture(scope="session")
def tiny_store(tiny_run, tmp_path_factory):
    """A store with the tiny run published once; nobody may change it."""
    from bseq_plugin.publishing.publish import publish

    store = tmp_path_factory.mktemp("tiny") / "store"
    publish(tiny_run, store)
    return store


@pytest.fixture(scope="session")
def python():
    """A function that runs ``python ARGS`` on one thread and gives the finished process, output as text."""

    def run(*args: object, timeout: float = 120, env: dict[str, str] | None = None, cwd: Path | None = None):
        return subprocess.run(
            [sys.executable, *map(str, args)],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            cwd=cwd,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        )

    return run


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


@pytest.fixture
def use_fake(monkeypatch):
    """A function that puts a fake GPU FAISS in place."""

    from bseq_plugin.indexes import faiss_gpu

    def use(**settings):
        gpu = FakeGpu(**settings)
        monkeypatch.setitem(sys.modules, "faiss", gpu.module)
        monkeypatch.setattr(faiss_gpu, "_workers", {})
        faiss_gpu._resources.cache_clear()
        return gpu

    yield use
    faiss_gpu._resources.cache_clear()
