"""What is served reads events as training does: every feature, from the store and from events given now."""

import numpy as np
import pandas as pd
import pytest
import torch

from bseq_plugin import (
    Events,
    InterestModel,
    Recipe,
    Retriever,
    SchemaError,
    Sequences,
    history_features,
    publish,
    train,
)

ALL = ("event_type", "time_gap", "time_of_week", "session", "value")


@pytest.fixture(scope="module")
def log():
    random = np.random.default_rng(0)
    n, start = 400, pd.Timestamp("2021-03-20T00:00:00+00:00")
    return pd.DataFrame(
        {
            "user_id": random.integers(0, 30, n),
            "item_id": random.integers(0, 25, n) * 3,
            "timestamp": start + pd.to_timedelta(np.sort(random.integers(0, 20 * 86_400, n)), unit="s"),
            "event_type": random.choice(["buy", "view"], n),
            "session_id": np.arange(n) // 7,
            "value": np.where(random.random(n) < 0.1, np.nan, random.normal(3, 2, n)),
        }
    )


@pytest.fixture(scope="module")
def served(log, tmp_path_factory):
    """(model, retriever) of a run that reads everything, on the clocks of Berlin across the change to summer time."""
    folder = tmp_path_factory.mktemp("served")
    recipe = Recipe(
        encoder={"max_length": 6},
        vectors={"dim": 8},
        events={"features": ALL, "time_zone": "Europe/Berlin"},
        objective={"event_types": ("buy",)},
        split="none",
        training={"epochs": 2, "batch": {"users": 8}, "table": {"rate": 0.5}},
    )
    run = train(Events.from_frame(log), recipe, folder / "run", progress=False)
    publish(run, folder / "store")
    return InterestModel.from_run(run.path), Retriever.open(folder / "store")


def through_torchrec(model, sequences):
    """Interests on the road of training: a KeyedJaggedTensor into the module."""
    with torch.no_grad():
        return model.encoder(history_features(sequences.latest(model.recipe.encoder.max_length), model.recipe)).values()


def test_every_context_table_has_learned(served):
    tables = served[0].encoder.embedding_collection.embeddings
    assert set(tables) == {"item", *ALL}
    assert all(bool(tables[name].weight.any()) for name in ALL)


@pytest.mark.parametrize("given", ["ids", "frame", "events"])
def test_scores_are_those_of_the_encoder_that_was_trained(log, served, given):
    model, retriever = served
    sequences = Sequences.from_events(Events.from_frame(log), model.vocabulary)
    scores_UV = through_torchrec(model, sequences) @ model.item_vectors_VD.T
    history = {"ids": sequences.user_ids, "frame": log.sample(frac=1, random_state=1), "events": Events.from_frame(log)}
    hits = retriever.retrieve(history[given], k=25, exclude="none", blend=False)
    assert len(hits) == 25 * sequences.n_users
    place = {user: n for n, user in enumerate(sequences.user_ids.tolist())}
    rows = model.vocabulary.item_rows(hits["item_id"])
    expected = scores_UV[[place[user] for user in hits["user_id"]], rows]
    np.testing.assert_allclose(hits["score"], expected.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("column", ["event_type", "value", "session_id"])
def test_what_a_history_does_not_say_is_unknown(log, served, column):
    """Rows 0 for types and values; sessions by the gap."""
    model, retriever = served
    less = log.drop(columns=column)
    sequences = Sequences.from_events(Events.from_frame(log), model.vocabulary)
    filled = {
        "event_type": ("event_types", np.zeros(len(log), np.int64)),
        "value": ("values", np.full(len(log), np.nan)),
        "session_id": ("session_ids", None),
    }
    name, values = filled[column]
    unknown = Sequences(**{**vars(sequences), name: values})
    scores_UV = through_torchrec(model, unknown) @ model.item_vectors_VD.T
    hits = retriever.retrieve(less, k=1, exclude="none", blend=False)
    np.testing.assert_allclose(hits["score"], scores_UV[:, 1:].amax(1).numpy(), rtol=1e-4, atol=1e-5)
    with_all = (through_torchrec(model, sequences) @ model.item_vectors_VD.T)[:, 1:].amax(1).numpy()
    assert not np.allclose(hits["score"], with_all, atol=1e-6)  # or the column would not be read at all


def test_event_types_unseen_in_training_are_unknown(log, served):
    _, retriever = served
    strange = retriever.retrieve(log.assign(event_type="redeem"), k=5, blend=False)
    unknown = retriever.retrieve(log.drop(columns="event_type"), k=5, blend=False)
    pd.testing.assert_frame_equal(strange, unknown)


@pytest.mark.parametrize("years", [(2000,) * 4, (1991, 1999, 2020, 2021)])
def test_one_instant_and_gaps_of_years_have_finite_scores(served, years):
    _, retriever = served
    history = pd.DataFrame({"user_id": [1] * 4, "item_id": [0, 3, 6, 3], "value": [1e300, -1e300, 0, np.nan]})
    history["timestamp"] = pd.to_datetime([f"{year}-01-01" for year in years], utc=True)
    hits = retriever.retrieve(history, k=5)
    assert len(hits) == 5
    assert np.isfinite(hits["score"]).all()


def test_a_history_without_times_is_refused(served):
    model, retriever = served
    sequences = Sequences(np.zeros(1, np.int64), np.array([0, 2]), np.array([1, 2]))
    with pytest.raises(SchemaError, match="reads the times of events"):
        retriever.retrieve(sequences)


def test_an_encoder_of_sessions_is_served_as_it_was_trained(log, tmp_path):
    """Session ids where the history has them, else the gap; one event a session and one session a user included."""
    recipe = Recipe(
        encoder={"name": "cross_session", "max_length": 6},
        vectors={"dim": 8},
        events={"session_gap_minutes": 600.0},
        split="none",
        training={"epochs": 1, "batch": {"users": 8}},
    )
    run = train(Events.from_frame(log), recipe, tmp_path / "run", progress=False)
    publish(run, tmp_path / "store")
    model, retriever = InterestModel.from_run(run.path), Retriever.open(tmp_path / "store")
    for history in (log, log.drop(columns="session_id"), log.assign(session_id=7), log.assign(session_id=range(400))):
        sequences = Sequences.from_events(Events.from_frame(history), model.vocabulary)
        best = (through_torchrec(model, sequences) @ model.item_vectors_VD.T)[:, 1:].amax(1)
        hits = retriever.retrieve(history, k=1, exclude="none", blend=False)
        np.testing.assert_allclose(hits["score"], best.numpy(), rtol=1e-4, atol=1e-5)
    untimed = Sequences(np.zeros(1, np.int64), np.array([0, 2]), np.array([1, 2]))
    with pytest.raises(SchemaError, match="reads the times of events"):
        retriever.retrieve(untimed)
