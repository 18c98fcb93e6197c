"""What the retrieval tests share."""

from __future__ import annotations

from pathlib import Path

import faiss
import pytest
import torch

from bseq_plugin.retrieval.store import Store


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """The matrices here are tiny: more than one thread only costs."""
    before = torch.get_num_threads(), faiss.omp_get_max_threads()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    yield
    torch.set_num_threads(before[0])
    faiss.omp_set_num_threads(before[1])


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
