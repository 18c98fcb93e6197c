"""What the retrieval tests share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bseq_plugin.data.sequences import Sequences
from bseq_plugin.data.vocabulary import Vocabulary
from bseq_plugin.model.encoder import SequenceInterestEncoder
from bseq_plugin.model.interest_model import InterestModel
from bseq_plugin.recipe.recipe import Recipe
from bseq_plugin.store.store import Store


@pytest.fixture
def publish_text():
    """A function that publishes a version whose files all hold one text, to tell versions apart."""

    def publish(store: Store, text: str, names: tuple[str, ...] = ("a.txt", "b.txt")) -> str:
        def write(folder: Path) -> None:
            for name in names:
                (folder / name).write_text(text)

        return store.publish(write, {"text": text})

    return publish


@pytest.fixture
def two_versions(tmp_path, publish_text):
    """A store with versions "old" and "new", and their names."""
    store = Store(tmp_path / "store")
    return store, publish_text(store, "old"), publish_text(store, "new")


DAY_US = 86_400_000_000
START_US = 1_500_000_000_000_000


@pytest.fixture(scope="session")
def make_model():
    """A function that makes an untrained model; its vectors are random, or small whole numbers with exact products."""

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
        return InterestModel.from_state(recipe, vocabulary, state, None, START_US)

    return make


@pytest.fixture(scope="session")
def make_histories():
    """A function that makes histories of known and some unknown items; user ids are 100, 101, ..."""

    def make(model, lengths, seed=0, *, unknown=0.0, times=True):
        random = np.random.default_rng(seed)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        items = random.integers(1, model.vocabulary.n_items + 1, offsets[-1])
        items[random.random(offsets[-1]) < unknown] = 0
        clock = [np.sort(random.integers(START_US, START_US + 90 * DAY_US, n)) for n in lengths]
        event_types = random.integers(1, 3, offsets[-1]) if model.vocabulary.event_types else None
        timestamps = np.concatenate([*clock, np.empty(0, np.int64)]) if times else None
        return Sequences(np.arange(100, 100 + len(lengths)), offsets, items, timestamps, event_types)

    return make
