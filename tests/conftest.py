"""What several test folders share: a tiny log, a recipe for it, one finished run, untrained models, a fake GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import faiss
import numpy as np
import pandas as pd
import pytest
import torch
from fake_gpu import FakeGpu
from instants import DAY_US
from toml_text import options

from bseq_plugin.testing.commands import command_of

bseq = command_of()
START_US = 1_600_000_000_000_000
MODEL_US = 1_500_000_000_000_000  # what an untrained model knows ends here, and its histories begin


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
    from bseq_plugin import Recipe

    return Recipe(**TINY)


@pytest.fixture(scope="session")
def tiny_settings():
    """``tiny_recipe`` as arguments of the command line."""
    return options(TINY)


@pytest.fixture(scope="session")
def tiny_run(tiny_frame, tiny_recipe, tmp_path_factory):
    """A finished run of the tiny recipe on the tiny log, leave-one-out; nobody may change it."""
    import torch

    from bseq_plugin import Events, train

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run = train(Events.from_frame(tiny_frame), tiny_recipe, tmp_path_factory.mktemp("tiny") / "run", progress=False)
    torch.set_num_threads(threads)
    return run.path


@pytest.fixture(scope="session")
def tiny_store(tiny_run, tmp_path_factory):
    """A store with the tiny run published once; nobody may change it."""
    from bseq_plugin import publish

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


@pytest.fixture(scope="session")
def make_model():
    """A function that makes an untrained model; its vectors are random, or small whole numbers with exact products."""
    from bseq_plugin import InterestModel, Recipe, SequenceInterestEncoder, Vocabulary

    def make(n_items=40, dim=6, seed=0, *, strings=False, whole=False, event_features=(), max_length=20, score="inner"):
        generator = torch.Generator().manual_seed(seed)
        ids = np.array([f"item {i:04d} é" for i in range(n_items)], object) if strings else np.arange(n_items) * 10 + 5
        counts = torch.randint(1, 50, (n_items,), generator=generator).numpy().astype(np.int64)
        vocabulary = Vocabulary(ids, counts, ("buy", "view") if "event_type" in event_features else ())
        recipe = Recipe(
            encoder={"name": "mean", "max_length": max_length},
            vectors={"dim": dim, "similarity": score},
            events={"features": event_features},
        )
        encoder = SequenceInterestEncoder(recipe, n_items, len(vocabulary.event_types))
        state = {
            name: torch.randint(-2, 3, value.shape, generator=generator).float()
            if whole
            else torch.randn(value.shape, generator=generator)
            for name, value in encoder.state_dict().items()
        }
        return InterestModel.from_state(recipe, vocabulary, state, None, MODEL_US)

    return make


@pytest.fixture(scope="session")
def make_histories():
    """A function that makes histories of known and some unknown items; user ids are 100, 101, ..."""
    from bseq_plugin import Sequences

    def make(model, lengths, seed=0, *, unknown=0.0, times=True):
        random = np.random.default_rng(seed)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        items = random.integers(1, model.vocabulary.n_items + 1, offsets[-1])
        items[random.random(offsets[-1]) < unknown] = 0
        clock = [np.sort(random.integers(MODEL_US, MODEL_US + 90 * DAY_US, n)) for n in lengths]
        event_types = random.integers(1, 3, offsets[-1]) if model.vocabulary.event_types else None
        timestamps = np.concatenate([*clock, np.empty(0, np.int64)]) if times else None
        return Sequences(np.arange(100, 100 + len(lengths)), offsets, items, timestamps, event_types)

    return make


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
