"""Items that can't be published: ids twice, vectors that can't be searched for (docs/faults.md 5, 18, 20)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bseq_plugin import ITEM_TABLE, Retriever, StoreError, UsageError
from bseq_plugin.publishing.publish import publish_model
from bseq_plugin.store.store import Store


def table(model):
    """The item table itself, row 0 for unknown items."""
    return model.encoder.embedding_collection.embeddings[ITEM_TABLE].weight


def spoilt(model, rows, value):
    """The model with the vectors of these index rows set to one value."""
    with torch.no_grad():
        table(model)[torch.tensor(rows) + 1] = value
    return model


def answers(store, model, k=40):
    """{user: {item: score}} of everything the store serves."""
    found = Retriever.open(store).retrieve([100, 101, 102], k=k, exclude="none", blend=False)
    return {user: dict(zip(part.item_id, part.score, strict=True)) for user, part in found.groupby("user_id")}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """The catalogue is checked in several blocks, as a large one is."""
    monkeypatch.setattr("bseq_plugin.publishing.publishable.ROWS", 7)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def test_ids_that_are_there_twice_are_refused_and_listed(store, make_model, make_histories):
    model = make_model()
    ids = model.vocabulary.item_ids.copy()
    ids[[3, 5, 9]] = ids[[2, 2, 8]]
    model.vocabulary = replace(model.vocabulary, item_ids=ids)
    with pytest.raises(StoreError, match=rf"3 item ids .*\[{ids[2]}, {ids[8]}\].*nothing is published.*dedup='last'"):
        publish_model(model, make_histories(model, [3]), store)
    assert not store.path.exists()


def test_the_first_ten_are_listed(store, make_model, make_histories):
    model = make_model()
    model.vocabulary = replace(model.vocabulary, item_ids=np.repeat(model.vocabulary.item_ids[:20], 2))
    with pytest.raises(StoreError) as caught:
        publish_model(model, make_histories(model, [3]), store)
    assert f"20 item ids are there more than once, for example {model.vocabulary.item_ids[:20:2].tolist()};" in str(
        caught.value
    )


def test_the_last_of_equal_ids_is_kept_and_takes_over_the_events(store, make_model, make_histories):
    model = make_model()
    plain = model.vocabulary
    ids = plain.item_ids.copy()
    ids[2] = ids[7]
    model.vocabulary = replace(plain, item_ids=ids)
    histories = make_histories(model, [6, 9, 4])
    histories.items[[0, 7, 18]] = 3  # the row that is lost
    publish_model(model, histories, store, dedup="last")
    served = Retriever.open(store)
    assert served.model.vocabulary.item_ids.tolist() == [*ids[:2], *ids[3:]]
    kept = [row for row in range(40) if row != 2]
    assert torch.equal(table(served.model)[1:], table(model)[1:][kept])
    names = [None, *ids]  # by row of the old vocabulary; both rows have one name
    new_names = [None, *served.model.vocabulary.item_ids]
    assert [new_names[row] for row in served.histories.items] == [names[row] for row in histories.items]
    assert ids[7] in {names[row] for row in histories.items if row == 3}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_items_that_are_not_finite_can_be_left_out(store, make_model, make_histories, value):
    model, rows = make_model(), [0, 7, 39]
    histories = make_histories(model, [6, 9, 14])
    with pytest.raises(StoreError, match="3 items have NaN or Inf"):
        publish_model(spoilt(model, rows, value), histories, store)
    with pytest.warns(UserWarning, match=rf"3 items have no usable vector.*\[{model.vocabulary.item_ids[0]}, "):
        publish_model(model, histories, store, on_bad="drop")
    served = Retriever.open(store)
    kept = np.setdiff1d(np.arange(40), rows)
    assert served.model.vocabulary.item_ids.tolist() == model.vocabulary.item_ids[kept].tolist()
    assert served.model.vocabulary.item_counts.tolist() == model.vocabulary.item_counts[kept].tolist()
    place = {row + 1: new + 1 for new, row in enumerate(kept)}
    assert served.histories.items.tolist() == [place.get(row, 0) for row in histories.items]
    # what is served is what a model of these items alone would serve
    wanted = served.model.encode(served.histories)[:, 0] @ table(model)[1:][kept].T
    for user, row in zip([100, 101, 102], wanted, strict=True):
        found = answers(store, model)[user]
        got = [found[item] for item in served.model.vocabulary.item_ids]
        np.testing.assert_allclose(got, row.detach(), rtol=1e-5, atol=1e-5)


def test_a_vector_of_zeros_has_no_cosine(store, make_model, make_histories):
    model = spoilt(make_model(score="cosine"), [4, 11], 0.0)
    histories = make_histories(model, [6, 9, 14])
    ids = model.vocabulary.item_ids
    with pytest.raises(StoreError, match=rf"2 items are zero and have no cosine, for example \[{ids[4]}, {ids[11]}\]"):
        publish_model(model, histories, store)
    assert not store.path.exists()
    with pytest.warns(UserWarning, match="2 items have no usable vector"):
        publish_model(model, histories, store, on_bad="drop")
    assert {len(found) for found in answers(store, model).values()} == {38}
    assert all(np.isfinite(list(found.values())).all() for found in answers(store, model).values())


def test_a_vector_of_zeros_has_an_inner_product(store, make_model, make_histories):
    model = spoilt(make_model(), [4], 0.0)
    publish_model(model, make_histories(model, [6, 9, 14]), store)
    assert answers(store, model)[100][model.vocabulary.item_ids[4]] == 0


def test_nothing_left_is_an_error(store, make_model, make_histories):
    model = spoilt(make_model(), list(range(40)), float("nan"))
    with pytest.raises(StoreError, match="no item has a usable vector"), pytest.warns(UserWarning, match="40 items"):
        publish_model(model, make_histories(model, [0]), store, on_bad="drop")
    assert not store.path.exists()


@pytest.mark.parametrize("settings", [{"on_bad": "ignore"}, {"dedup": "first"}])
def test_other_choices_are_refused(store, make_model, make_histories, settings):
    model = make_model()
    with pytest.raises(UsageError, match="use 'error' or"):
        publish_model(model, make_histories(model, [3]), store, **settings)
