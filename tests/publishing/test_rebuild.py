"""The same inputs give the same version, byte for byte."""

from __future__ import annotations

import pytest

from bseq_plugin import Blend, UsageError
from bseq_plugin.publishing.publish import publish_model
from bseq_plugin.store.store import Store


def content(store):
    """{name: bytes} of all files of the current version."""
    return {path.name: path.read_bytes() for path in store.current().folder.iterdir()}


@pytest.mark.parametrize("index", ["exact", "Flat", "ivf_flat", "ivf_pq", "hnsw"])
def test_a_version_built_again_is_the_same(tmp_path, make_model, make_histories, monkeypatch, index):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    weights = Blend(sources={"transitions": 1.0, "popularity": 1.0})
    names, contents = [], []
    for place in ("one", "two"):
        model = make_model(n_items=900, dim=6, event_features=("event_type",))  # everything is made anew
        histories = make_histories(model, [9, 30, 4])
        settings = (
            {"index": "exact"} if index == "exact" else {"index": "faiss_cpu", "index_options": {"factory": index}}
        )
        for _ in range(2):  # the second has a parent
            names.append(publish_model(model, histories, tmp_path / place, blend=weights, **settings))
        contents.append(content(Store(tmp_path / place)))
    assert names[:2] == names[2:]
    assert contents[0].keys() == contents[1].keys()
    assert [name for name in contents[0] if contents[0][name] != contents[1][name]] == []
    assert "items.faiss" in contents[0] or index == "exact"


def test_other_inputs_give_another_version(tmp_path, make_model, make_histories, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    names = set()
    for place, (seed, lengths) in enumerate([(0, [3]), (1, [3]), (0, [4])]):
        model = make_model(seed=seed)
        names.add(publish_model(model, make_histories(model, lengths), tmp_path / str(place)))
    assert len(names) == 3


@pytest.mark.parametrize("text", ["now", "1.5", "9" * 30])
def test_a_date_that_is_none_is_refused(tmp_path, monkeypatch, text):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", text)
    with pytest.raises(UsageError, match="SOURCE_DATE_EPOCH"):
        Store(tmp_path / "store").publish(lambda folder: None, {})
    assert Store(tmp_path / "store").versions() == []
