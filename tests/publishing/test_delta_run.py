"""A run that went on from the published one: a delta of what it changed answers as a full build would."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bseq_plugin.data.events import Events
from bseq_plugin.data.sequences import Sequences
from bseq_plugin.data.vocabulary import Vocabulary
from bseq_plugin.errors import StoreError, UsageError
from bseq_plugin.model.encoder import ITEM_TABLE
from bseq_plugin.model.interest_model import InterestModel
from bseq_plugin.publishing.delta import merge_delta, publish_delta
from bseq_plugin.publishing.delta_run import changed_rows, composed, followed, publish_run_delta
from bseq_plugin.publishing.publish import publish, publish_model
from bseq_plugin.serving.retriever import Retriever
from bseq_plugin.serving.served import Served
from bseq_plugin.store.store import Store
from bseq_plugin.store.version import INDEX_FILE
from bseq_plugin.training.train import train


@pytest.fixture(scope="module")
def old_frame(make_frame):
    return make_frame(n_users=150, n_items=400)


@pytest.fixture(scope="module")
def days(old_frame):
    """Days after the log: 20 of its users and two new ones, some of its items, a new item, a new event type."""
    frame = old_frame[old_frame.user_id < 60].groupby("user_id").head(3).copy()
    frame["timestamp"] = frame["timestamp"] + pd.Timedelta(days=100)
    frame.loc[frame.index[:2], "item_id"] = 1  # before all others: no row is where it was
    frame.loc[frame.index[-2:], "event_type"] = "add"
    frame.loc[frame.index[:6], "user_id"] = [1000, 1000, 1000, 1001, 1001, 1001]
    return frame


@pytest.fixture(scope="module")
def recipe(tiny_recipe):
    return tiny_recipe.replace(split="none", epochs=1, candidates=8, sampling="uniform")


@pytest.fixture(scope="module")
def runs(old_frame, days, recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    old = train(Events.from_frame(old_frame), recipe, folder / "old", progress=False)
    return old.path, train(
        Events.from_frame(days), recipe, folder / "new", progress=False, warm_start=folder / "old"
    ).path


def table(model):
    return model.encoder.embedding_collection.embeddings[ITEM_TABLE].weight.detach()


def by_id(model):
    return dict(zip(model.vocabulary.item_ids.tolist(), table(model)[1:], strict=True))


@pytest.mark.parametrize(
    "index", [{"index": "exact"}, {"index": "faiss_cpu"}, {"index": "faiss_cpu", "index_options": {"factory": "hnsw"}}]
)
def test_a_run_on_new_days_is_published_as_what_it_changed(runs, old_frame, days, tmp_path, index):
    old, new = (InterestModel.from_run(run) for run in runs)
    store = Store(tmp_path / "store")
    publish(runs[0], store, **index)
    first = store.load(lambda version: version.folder)
    publish_run_delta(runs[1], store)
    served = store.load(lambda version: Served.load(version, None))

    wanted = {**by_id(old), **by_id(new)}
    found = by_id(served.model)
    assert found.keys() == wanted.keys()
    assert 1 in found
    assert all(torch.equal(found[item], wanted[item]) for item in wanted)
    changed = {item for item, row in by_id(old).items() if not torch.equal(row, wanted[item])}
    assert 0 < len(changed) < 0.2 * old.vocabulary.n_items
    if index["index"] != "exact":
        assert {served.model.vocabulary.item_ids[row] for row in served.overlay.stale_S} == changed
        kept = served.version.folder / INDEX_FILE
        assert kept.read_bytes() == (first / INDEX_FILE).read_bytes()

    # a full build of the same items, over histories made from both logs in pandas
    frame = pd.concat([old_frame, days], ignore_index=True).sort_values("timestamp", kind="stable")
    histories = Sequences.from_events(Events.from_frame(frame), served.model.vocabulary)
    publish_model(served.model, histories, tmp_path / "full", index="exact")
    users = [1000, 1001, *histories.user_ids[:40]]
    ours, full = (Retriever.open(path).retrieve(users, k=10) for path in (tmp_path / "store", tmp_path / "full"))
    joined = ours.merge(full, on=["user_id", "item_id"], how="inner")
    share = len(joined) / len(full)
    assert share == 1 if index.get("index_options") is None else share > 0.9
    np.testing.assert_allclose(joined.score_x, joined.score_y, rtol=1e-5, atol=1e-5)
    merge_delta(store)  # and the next full build goes on from there
    assert set(Retriever.open(store).model.vocabulary.item_ids) == set(wanted)


def test_what_was_removed_stays_removed(runs, tmp_path):
    store = Store(tmp_path / "store")
    publish(runs[0], store, index="faiss_cpu")
    gone = InterestModel.from_run(runs[1]).vocabulary.item_ids[5]
    publish_delta(store, removed=[gone])
    publish_run_delta(runs[1], store)
    retriever = Retriever.open(store)
    hits = retriever.retrieve(retriever.histories.user_ids[:20], k=400, exclude="none")
    assert gone not in set(hits.item_id)


def test_what_can_not_lie_in_one_index_is_refused(runs, old_frame, days, recipe, tmp_path):
    store = Store(tmp_path / "store")
    name = publish(runs[0], store, index="faiss_cpu")
    other = train(Events.from_frame(days), recipe.replace(dim=12), tmp_path / "wide", progress=False)
    with pytest.raises(UsageError, match="dim = 12.*publish in full"):
        publish_run_delta(other, store)
    whole = recipe.replace(candidates="all")
    every = train(Events.from_frame(old_frame), whole, tmp_path / "all", progress=False, warm_start=runs[0])
    with pytest.raises(UsageError, match="382 of 382 items would lie on top.*publish in full"):
        publish_run_delta(every, store)
    text = days.assign(item_id=days.item_id.astype(str))
    words = train(Events.from_frame(text), recipe, tmp_path / "text", progress=False)
    with pytest.raises(UsageError, match="different kinds"):
        publish_run_delta(words, store)
    assert store.current_name() == name


def test_vectors_that_are_not_finite_are_refused(runs, tmp_path, monkeypatch):
    store = Store(tmp_path / "store")
    name = publish(runs[0], store, index="faiss_cpu")
    read = InterestModel.from_run

    def damaged(path):
        model = read(path)
        state = {key: value.clone() for key, value in model.encoder.state_dict().items()}
        for value in state.values():
            if value.shape[0] == model.vocabulary.n_items + 1:
                value[3] = torch.nan
        return InterestModel.from_state(model.recipe, model.vocabulary, state, None, model.trained_until_us)

    monkeypatch.setattr(InterestModel, "from_run", damaged)
    with pytest.raises(StoreError, match="NaN or Inf"):
        publish_run_delta(runs[1], store)
    assert store.current_name() == name


def test_unknown_items_keep_rows_and_priors(make_model):
    old, new = make_model(n_items=6, seed=1), make_model(n_items=9, seed=2)
    new = new.with_items(np.array([8, 1, 7, 2]))
    new = InterestModel.from_state(  # a vocabulary is in ascending order
        new.recipe, new.with_items(np.array([1, 3, 2, 0])).vocabulary, new.encoder.state_dict(), None, None
    )
    both = composed(old, new)
    assert both.vocabulary.item_ids.tolist() == [5, 15, 25, 35, 45, 55, 75, 85]
    assert torch.equal(table(both)[[1, 4, 5, 6]], table(old)[[1, 4, 5, 6]])
    assert torch.equal(table(both)[[0, 2, 3, 7, 8]], table(new)[[0, 1, 2, 3, 4]])
    assert changed_rows(table(old)[1:], table(both)[1:]).tolist() == [1, 2, 6, 7]


def test_events_without_a_value_stay_without_one():
    first = Sequences(np.array([1]), np.array([0, 2]), np.array([1, 2]), np.array([1, 2]))
    then = Sequences(np.array([1]), np.array([0, 1]), np.array([3]), np.array([3]), values=np.array([5.0]))
    np.testing.assert_array_equal(followed(first, then).values, [np.nan, np.nan, 5.0])
    np.testing.assert_array_equal(followed(then, first).values, [5.0, np.nan, np.nan])


LOGS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5), st.integers(0, 9)), max_size=12)


@settings(max_examples=40, deadline=None)
@given(LOGS, LOGS)
def test_histories_followed_by_others_are_those_of_both_logs(first, then):
    vocabulary = Vocabulary(np.arange(6), np.ones(6, np.int64), ())

    def histories(rows):
        users, items, times = (np.array([row[c] for row in rows], np.int64) for c in range(3))
        when = pd.to_datetime(times + 1_600_000_000, unit="s", utc=True)
        frame = pd.DataFrame({"user_id": users, "item_id": items, "timestamp": when})
        return Sequences.from_events(Events.from_frame(frame), vocabulary)

    if not first or not then:  # a log of nothing is refused where logs are read
        return
    later = [(user, item, time + 10) for user, item, time in then]
    found, wanted = followed(histories(first), histories(later)), histories([*first, *later])
    read = {user: found.take(np.array([place])) for place, user in enumerate(found.user_ids.tolist())}
    assert sorted(read) == wanted.user_ids.tolist()
    for place, user in enumerate(wanted.user_ids.tolist()):
        alone = wanted.take(np.array([place]))
        assert read[user].items.tolist() == alone.items.tolist()
        assert read[user].timestamps.tolist() == alone.timestamps.tolist()
