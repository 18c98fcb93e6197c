"""The exported model scores exactly as training did (design, section 7)."""

import json
from contextlib import nullcontext

import numpy as np
import pandas as pd
import pytest
import torch

from bseq_plugin import (
    Events,
    InterestModel,
    Recipe,
    RunError,
    SequenceInterestTask,
    plugin_manager,
    score_vectors,
    train,
)
from bseq_plugin.data.batches import EVENT, NEGATIVE, TARGET
from bseq_plugin.data.prepare import prepare
from bseq_plugin.data.training_data import TrainingData
from bseq_plugin.training.checkpoint import Checkpoints, Position

CAUSAL = {"name": "causal", "n_blocks": 1}
VARIANTS = {
    "next": {"encoder": CAUSAL},
    "members": {"encoder": CAUSAL, "vectors": {"ensemble": 2}},
    "attributes": {"encoder": "mean", "items": {"attributes": ("shelf", "brand")}},
    "everything": {
        "encoder": {"name": "mean", "feed_forward": 8, "half_life_days": 10.0},
        "vectors": {"similarity": {"kind": "cosine", "temperature": 0.3}},
        "events": {"features": ("event_type",)},
        "items": {
            "min_count": 2,
            "attributes": ("shelf", "brand"),
            "encoders": [{"name": "columns", "numbers": ("brand",)}],
            "prior_events": 0.0,
        },
        "objective": {"kind": "window", "days": 14, "popularity_days": (7.0, 28.0)},
        "split": {"kind": "time", "horizon_days": 14},
    },
    "encoders": {
        "encoder": CAUSAL,
        "items": {
            "encoders": [{"name": "columns", "categories": ("shelf",), "numbers": ("brand",), "buckets": 8}],
            "prior_events": 0.0,  # else an export completes rows with those of their neighbours: test_neighbours.py
        },
        "training": {"table": {"rate": 0.1}},
    },
}


@pytest.fixture(scope="module")
def shelf():
    """Attributes of some items; others have none."""
    return pd.DataFrame(
        {"item_id": np.arange(0, 25) * 10 + 5, "shelf": ["a", "b", None, "c", "a"] * 5, "brand": [1, 2] * 12 + [7]}
    )


@pytest.fixture(scope="module", params=VARIANTS)
def trained(request, tiny_frame, shelf, tmp_path_factory):
    """(prepared log, the task with the trained weights as training had them, the exported model)."""
    recipe = Recipe(
        encoder={"max_length": 10},
        vectors={"dim": 8},
        training={"epochs": 2, "batch": {"users": 16}, "table": {"rate": 0.5}},
    ).replace(**VARIANTS[request.param])
    events = Events.from_frame(tiny_frame)
    items = shelf if recipe.items.attributes or recipe.items.encoders else None
    said = pytest.warns(UserWarning, match="5 of 30 items") if recipe.items.encoders else nullcontext()
    with said:
        run = train(events, recipe, tmp_path_factory.mktemp("exported") / "run", items=items, progress=False)
    with said:
        log = prepare(events, recipe, items)
    task = SequenceInterestTask(
        log.recipe,
        log.vocabulary.n_items,
        len(log.vocabulary.event_types),
        attributes=log.attributes,
        item_vectors=log.item_vectors,
    )
    Checkpoints(run.path).load_plain(task, Position(run.info["best_epoch"]))
    return log, task.eval(), InterestModel.from_run(run.path)


@torch.no_grad()
def training_side(log, task):
    """(histories by user place, scores [B, N], negative rows [N]) of one training batch, newest states only."""
    # priors of a batch are those at its own instant; the model's are those at the end of training
    batch = next(TrainingData(log.training, log.vocabulary, log.recipe).batches(0))
    encoder = task.interest_encoder
    looked_up = encoder.embedding_collection(batch.features)
    event, _, negative = encoder.item_tower(looked_up, batch.features, [EVENT, TARGET, NEGATIVE])
    events = encoder.event_embedder(event, looked_up, batch.features)
    newest = events.offsets_B1[1:][events.lengths_B > 0] - 1
    interests = encoder.interest_head(encoder.sequence_encoder(events, newest))
    priors = None if log.item_priors is None else torch.from_numpy(log.item_priors)[batch.negative_ids_N]
    vectors = score_vectors(negative, priors, log.recipe.vectors.similarity.kind == "cosine")
    return batch, interests @ vectors.T, batch.negative_ids_N


def as_sequences(batch, log):
    from bseq_plugin import Sequences

    event = batch.features["event"]
    types = batch.features["event_type"].values().numpy() if "event_type" in set(batch.features.keys()) else None
    return Sequences(
        np.arange(event.lengths().numel()),
        event.offsets().numpy().astype(np.int64),
        event.values().numpy(),
        batch.features["timestamp"].values().numpy(),
        types,
    )


def test_exported_scores_are_the_training_scores(trained):
    log, task, model = trained
    batch, scores, rows = training_side(log, task)
    histories = as_sequences(batch, log)
    interests = model.encode(histories)[:, 0]
    assert (histories.lengths > 0).all()
    assert float(scores.std()) > 1e-3  # not all the same
    torch.testing.assert_close(interests @ model.item_vectors_VD[rows].T, scores, rtol=1e-5, atol=1e-5)
    vectors_VD = model.item_vectors_VD[1:]
    for name, options in (("exact", {}), ("faiss_cpu", {"factory": "Flat"})):
        index = plugin_manager().part("index", name).build(vectors_VD, options)
        found, places = index.search(interests, len(vectors_VD))
        by_row = torch.empty_like(found).scatter_(1, places, found)
        torch.testing.assert_close(by_row[:, rows - 1], scores, rtol=1e-5, atol=1e-5, msg=name)


def test_the_exported_item_table_is_whole(trained):
    log, task, model = trained
    assert model.encoder.item_tower.attribute_table is None
    table = model.encoder.embedding_collection.embeddings["item"].weight
    looked_up = task.interest_encoder.embedding_collection.embeddings["item"].weight
    tower = task.interest_encoder.item_tower
    if tower.attribute_table is None:
        assert torch.equal(table, looked_up)
        return
    for row in range(len(table)):  # by hand, item by item
        own = slice(*log.attributes.offsets[row : row + 2])
        wanted = looked_up[row] + tower.attribute_table.weight[log.attributes.codes_M[own]].sum(0)
        torch.testing.assert_close(table[row], wanted)


def test_cosine_vectors_have_length_one(trained):
    log, _, model = trained
    if log.recipe.vectors.similarity.kind == "cosine":
        vectors = model.item_vectors_VD[1:, : log.recipe.vectors.dim]
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))


def test_saved_and_loaded_the_interests_are_the_same(trained, tmp_path):
    log, _, model = trained
    model.save(tmp_path)
    again = InterestModel.load(tmp_path)
    assert again.recipe == model.recipe
    assert again.trained_until_us == model.trained_until_us == log.trained_until_us
    assert torch.equal(again.encode(log.sequences), model.encode(log.sequences))
    assert torch.equal(again.item_vectors_VD, model.item_vectors_VD)
    assert again.vocabulary.item_ids.tolist() == model.vocabulary.item_ids.tolist()


def test_encoding_does_not_depend_on_the_batch(trained, monkeypatch):
    """Many calls, one call, one user: the order of users is kept, and only the newest events are read."""
    log, _, model = trained
    whole = model.encode(log.sequences)
    monkeypatch.setattr("bseq_plugin.model.interest_model.EVENTS_PER_CALL", 7)
    torch.testing.assert_close(model.encode(log.sequences), whole, rtol=1e-5, atol=1e-5)
    one = log.sequences.take(np.array([5]))
    torch.testing.assert_close(model.encode(one)[0], whole[5], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.encode(log.sequences.latest(10)), whole)
    assert model.encode(log.sequences.take(np.array([], np.int64))).shape == (0, 1, log.recipe.interest_dim)


def test_an_incomplete_or_unfit_model_is_refused(trained, tmp_path):
    _, _, model = trained
    with pytest.raises(RunError, match="not a finished run"):
        InterestModel.from_run(tmp_path / "nothing")
    model.save(tmp_path)
    header = json.loads((tmp_path / "recipe.json").read_text())
    header["recipe"]["vectors"]["dim"] = 16
    (tmp_path / "recipe.json").write_text(json.dumps(header))
    with pytest.raises(RunError, match="does not fit its recipe"):
        InterestModel.load(tmp_path)
    (tmp_path / "items.safetensors").unlink()
    with pytest.raises(RunError, match="has no items.safetensors"):
        InterestModel.load(tmp_path)
