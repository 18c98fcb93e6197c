"""What the tests of the store share."""

from __future__ import annotations

from pathlib import Path

import pytest

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
