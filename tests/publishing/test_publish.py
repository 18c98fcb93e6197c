"""What a version holds, and what is refused before anything is published."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from bseq_plugin import (
    Blend,
    InterestModel,
    MissingDependencyError,
    Retriever,
    Run,
    RunError,
    Sequences,
    StoreError,
    UsageError,
    publish,
)
from bseq_plugin.indexes.exact import ExactIndex
from bseq_plugin.publishing.publish import publish_model
from bseq_plugin.store.store import Store

FILES = {
    "encoder.safetensors", "items.safetensors", "recipe.json", "vocabulary.parquet", "item_ids.parquet",
    "item_vectors.safetensors", "sequences.parquet", "interests.parquet", "popular.parquet", "blend.json",
}  # fmt: skip


@pytest.fixture
def run(tmp_path, make_model, make_histories):
    """A run directory as training leaves it, as far as publishing reads it."""
    model = make_model(strings=True)
    histories = make_histories(model, [5, 1, 9, 30])
    folder = tmp_path / "run"
    (folder / "model").mkdir(parents=True)
    model.save(folder / "model")
    histories.save(folder / "sequences.parquet", model.vocabulary)
    model.vocabulary.save(folder / "vocabulary.parquet")
    (folder / "run.json").write_text('{"status": "complete"}')
    return SimpleNamespace(path=folder, model=model, histories=histories)


def test_a_version_holds_all_that_serving_needs(run, tmp_path):
    name = publish(run.path, tmp_path / "store")
    version = Store(tmp_path / "store").current()
    assert version.name == name
    assert set(version.manifest["files"]) == FILES
    assert {p.name for p in version.folder.iterdir()} == FILES | {"MANIFEST.json"}
    manifest = version.manifest
    assert manifest["dim"] == 6
    assert manifest["metric"] == "inner_product"
    assert (manifest["n_items"], manifest["n_users"], manifest["n_events"]) == (40, 4, 45)
    assert manifest["watermark_us"] == run.histories.timestamps.max()
    assert manifest["index"] == {"name": "exact", "options": {}}
    assert manifest["encoder_id"] == manifest["files"]["encoder.safetensors"]["sha256"]
    assert manifest["item_table_hash"] == manifest["files"]["items.safetensors"]["sha256"]
    assert {"torch", "torchrec", "python"} <= set(manifest["packages"])
    assert manifest["normalised"] is False
    assert not [name for name in os.listdir(version.folder) if name.endswith((".pkl", ".pt", ".npy"))]


def test_ids_vectors_and_popular_items_line_up(run, tmp_path):
    publish(run.path, tmp_path / "store")
    version = Store(tmp_path / "store").current()
    assert pq.read_table(version.file("item_ids.parquet"))["item_id"].to_pylist() == list(run.model.vocabulary.item_ids)
    vectors = load_file(version.file("item_vectors.safetensors"))["item_vectors"]
    assert torch.equal(vectors, run.model.item_vectors_VD[1:])
    popular = pq.read_table(version.file("popular.parquet")).to_pandas()
    counts = dict(zip(run.model.vocabulary.item_ids, run.model.vocabulary.item_counts, strict=True))
    assert popular["n_events"].is_monotonic_decreasing
    assert dict(zip(popular["item_id"], popular["n_events"], strict=True)) == counts


def test_interests_are_what_the_encoder_gives(run, tmp_path):
    publish(run.path, tmp_path / "store")
    interests = pq.read_table(Store(tmp_path / "store").current().file("interests.parquet")).to_pandas()
    assert interests["user_id"].tolist() == [100, 101, 102, 103]
    assert interests["n_events"].tolist() == [5, 1, 9, 30]
    assert interests["interest_idx"].tolist() == [0] * 4
    newest = run.histories.timestamps[run.histories.offsets[1:] - 1]
    assert str(interests["event_timestamp"].dt.tz) == "UTC"
    assert interests["event_timestamp"].astype("int64").tolist() == newest.tolist()
    vectors = torch.tensor(np.stack(interests["vector"]))
    torch.testing.assert_close(vectors, run.model.encode(run.histories)[:, 0])


def test_golden_queries_hold_the_true_answers(run, tmp_path):
    publish(run.path, tmp_path / "store")
    golden = Store(tmp_path / "store").current().manifest["golden"]
    assert len(golden["queries"]) == 4
    assert golden["k"] == 10
    assert golden["recall"] == 1.0
    scores = torch.tensor(golden["queries"]).double() @ run.model.item_vectors_VD[1:].double().T
    for row, ids in zip(scores, golden["item_ids"], strict=True):
        assert ids == [run.model.vocabulary.item_ids[i] for i in row.argsort(descending=True)[:10]]


def test_a_run_object_a_store_object_and_a_blend(run, tmp_path):
    blend = Blend(0.5, 2.0, 30.0, reached={"ndcg@20": 0.4})
    publish(Run.open(run.path), Store(tmp_path / "store"), blend=blend)
    assert Blend.load(Store(tmp_path / "store").current().file("blend.json")) == blend


def test_a_blend_is_an_argument_and_no_file_of_the_run(run, tmp_path):
    Blend(0.5, 2.0, 30.0).save(run.path / "blend.json")
    publish(run.path, tmp_path / "store")
    assert Blend.load(Store(tmp_path / "store").current().file("blend.json")) == Blend()


def test_other_histories_can_be_served(run, tmp_path, make_histories):
    publish(run.path, tmp_path / "store", histories=make_histories(run.model, [2, 2], seed=9))
    assert Store(tmp_path / "store").current().manifest["n_users"] == 2


def test_a_log_without_times(run, tmp_path):
    histories = run.histories
    untimed = Sequences(histories.user_ids, histories.offsets, histories.items)
    publish(run.path, tmp_path / "store", histories=untimed)
    version = Store(tmp_path / "store").current()
    assert version.manifest["watermark_us"] is None
    assert pq.read_table(version.file("interests.parquet"))["event_timestamp"].null_count == 4
    assert len(Retriever.open(tmp_path / "store").retrieve([100], k=3, exclude="none")) == 3


def test_users_without_events_have_no_interest_and_no_golden_query(run, tmp_path, make_histories):
    publish(run.path, tmp_path / "store", histories=make_histories(run.model, [0, 3, 0]))
    version = Store(tmp_path / "store").current()
    assert pq.read_table(version.file("interests.parquet"))["user_id"].to_pylist() == [101]
    assert version.manifest["golden"]["users"] == [1]
    publish(run.path, tmp_path / "store", histories=make_histories(run.model, [0]))
    assert Retriever.open(tmp_path / "store").retrieve([100], k=2)["source"].tolist() == ["popular"] * 2


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_vectors_that_are_not_finite_are_never_published(tmp_path, make_model, make_histories, value):
    model = make_model(strings=True)
    model.item_vectors_VD[7, 2] = value
    with pytest.raises(StoreError, match=r"1 items have NaN or Inf.*item 0006 é.*nothing is published"):
        publish_model(model, make_histories(model, [0]), tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_interests_that_are_not_finite_are_never_published(tmp_path, make_model, make_histories, monkeypatch):
    model = make_model()
    monkeypatch.setattr(InterestModel, "encode", lambda self, h: torch.full((h.n_users, 1, 6), float("nan")))
    with pytest.raises(StoreError, match=r"interests of 2 users have NaN or Inf.*\[100, 101\]"):
        publish_model(model, make_histories(model, [3, 4]), tmp_path / "store")


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"index": "foo"}, UsageError),
        ({"index": "exact", "index_options": {"no_such": 1}}, UsageError),
        ({"index": "faiss_cpu", "index_options": {"factory": "Foo"}}, UsageError),
        ({"index": "faiss_gpu"}, MissingDependencyError),
    ],
)
def test_an_unusable_index_publishes_nothing(run, tmp_path, settings, error):
    with pytest.raises(error):
        publish(run.path, tmp_path / "store", **settings)
    assert not (tmp_path / "store").exists()


def test_an_unfinished_run_is_refused(run, tmp_path):
    (run.path / "sequences.parquet").unlink()
    with pytest.raises(RunError, match=r"sequences\.parquet"):
        publish(run.path, tmp_path / "store")
    with pytest.raises(RunError):
        publish(tmp_path / "nothing", tmp_path / "store")
    (run.path / "model" / "items.safetensors").unlink()
    with pytest.raises(RunError):
        publish(run.path, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_normalised_is_measured(tmp_path, make_model, make_histories):
    model = make_model(score="cosine")
    publish_model(model, make_histories(model, [3]), tmp_path / "store")
    assert Store(tmp_path / "store").current().manifest["normalised"] is True


def test_index_scores_are_inner_products_of_interest_and_item(run, tmp_path):
    publish(run.path, tmp_path / "store", index="faiss_cpu")
    version = Store(tmp_path / "store").current()
    hits = Retriever.open(tmp_path / "store").retrieve(run.histories.user_ids, k=40, exclude="none", blend=False)
    interests = dict(zip(run.histories.user_ids, run.model.encode(run.histories)[:, 0].double(), strict=True))
    rows = run.model.vocabulary.item_rows(hits["item_id"])
    wanted = [
        float(interests[u] @ run.model.item_vectors_VD[r].double()) for u, r in zip(hits["user_id"], rows, strict=True)
    ]
    np.testing.assert_allclose(hits["score"], wanted, atol=1e-5, rtol=1e-5)
    assert version.manifest["golden"]["recall"] == 1.0
    oracle = ExactIndex.build(run.model.item_vectors_VD[1:])
    assert oracle.search(run.model.encode(run.histories)[:, 0], 40)[1].flatten().tolist() == (rows - 1).tolist()


def test_the_manifest_is_plain_json(run, tmp_path):
    publish(run.path, tmp_path / "store")
    folder = Store(tmp_path / "store").current().folder
    assert isinstance(json.loads((folder / "MANIFEST.json").read_text()), dict)
    assert isinstance(pd.read_parquet(folder / "interests.parquet"), pd.DataFrame)


def test_a_user_with_two_histories_is_refused(run, tmp_path):
    twice = run.histories.take(np.array([0, 1, 0]))
    with pytest.raises(UsageError, match="user twice"):
        publish(run.path, tmp_path / "store", histories=twice)


FULL = "No space left on device"


@pytest.mark.parametrize(
    ("writer", "error"),
    [
        ("bseq_plugin.model.interest_model.save_file", SafetensorError(FULL)),
        ("bseq_plugin.model.interest_model.create", OSError(28, FULL)),
        ("bseq_plugin.publishing.write_version.create", OSError(28, FULL)),
    ],
)
def test_a_full_disk_publishes_nothing(run, tmp_path, monkeypatch, writer, error):
    def full(*_):
        raise error

    publish(run.path, tmp_path / "store")
    before = Store(tmp_path / "store").current().name
    monkeypatch.setattr(writer, full)
    with pytest.raises(StoreError, match=r"No space left on device.*nothing was published"):
        publish(run.path, tmp_path / "store")
    assert Store(tmp_path / "store").current().name == before
    assert os.listdir(tmp_path / "store" / "versions") == [before]
