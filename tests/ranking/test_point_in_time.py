"""What was not known at an instant is not read: late arrivals, stored interests, long histories, and serving."""

from __future__ import annotations

import resource
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bseq_plugin import (
    Events,
    FeatureEngine,
    FeatureSpec,
    InterestModel,
    SchemaError,
    Sequences,
    StoredInterests,
    UsageError,
    ranking_features,
)
from bseq_plugin.ranking.features import FEATURES
from bseq_plugin.testing.ranking_features import DIM, NOW, NOW_US, log, manager_with, mean_model

MANAGER = manager_with(*FEATURES)
EVENT = st.tuples(st.integers(1, 3), st.integers(99, 109), st.integers(-20, 5), st.integers(0, 15))
ROWS = st.lists(st.tuples(st.integers(1, 4), st.integers(99, 109), st.integers(-15, 5)), min_size=1, max_size=6)


def late_log(rows):
    """Events of (user, item, seconds after NOW, seconds until it is known)."""
    events = log([row[:3] for row in rows])
    delay = np.array([row[3] for row in rows]) * 1_000_000
    return Events(events.frame.assign(created_timestamp=events.frame["timestamp"] + delay))


def candidates_of(asked):
    frame = pd.DataFrame(asked, columns=["user_id", "item_id", "at"])
    frame["at"] = NOW + pd.to_timedelta(frame["at"], unit="s")
    return frame


def same_bytes(a, b):
    assert a.names == b.names
    for name in a.names:
        assert a.columns[name].tobytes() == b.columns[name].tobytes(), name


@settings(max_examples=40, deadline=None)
@given(st.lists(EVENT, min_size=1, max_size=25), ROWS)
def test_late_events_are_as_if_they_were_not_there(rows, asked):
    """Each row sees what it would see in a log without the events that arrived after its ``at``."""
    candidates = candidates_of(asked)
    table = ranking_features(candidates, late_log(rows), model=mean_model(2), manager=MANAGER)
    for row, (_, _, seconds) in enumerate(asked):
        there = [r[:3] for r in rows if r[2] < seconds and r[2] + r[3] <= seconds] or [(9, 100, -1)]
        alone = ranking_features(candidates[row : row + 1], log(there), model=mean_model(2), manager=MANAGER)
        for name in table.names:
            assert table.columns[name][row].tobytes() == alone.columns[name][0].tobytes(), name


def test_arrival_survives_a_file(tmp_path):
    vocabulary = mean_model().vocabulary
    sequences = Sequences.from_events(late_log([(1, 100, -9, 3), (1, 101, -5, 30), (2, 102, -7, 0)]), vocabulary)
    sequences.save(tmp_path / "sequences.parquet", vocabulary)
    read = Sequences.load(tmp_path / "sequences.parquet", vocabulary)
    np.testing.assert_array_equal(read.created, sequences.created)
    assert ((read.latest_created - NOW_US) // 1_000_000).tolist() == [-6, 25, -7]


def interests(users, seconds, digest="0" * 64, seed=0):
    vectors = torch.randn(len(users), 2, DIM, generator=torch.Generator().manual_seed(seed))
    return StoredInterests(np.array(users), NOW_US + np.array(seconds) * 1_000_000, vectors, digest)


def test_stored_interests_are_looked_up_as_of_each_row():
    stored = interests([1, 1, 1, 2], [-20, -10, 0, -10])
    asked = [(1, 101, -20), (1, 101, -19), (1, 101, -9), (1, 101, 0), (1, 101, 1), (2, 101, 0), (3, 101, 0)]
    table = ranking_features(
        candidates_of(asked), log([(1, 100, -30)]), model=mean_model(), interests=stored, manager=MANAGER
    )
    # watermark strictly before at: an event at the instant itself is the future
    row_of = [None, 0, 1, 1, 2, 3, None]
    for row, place in enumerate(row_of):
        got = table.columns["user_interests"][row].reshape(2, DIM)
        if place is None:
            assert np.isnan(got).all()
            assert table.columns["is_cold_user"][row] == 1
        else:
            wanted = torch.nn.functional.normalize(stored.vectors_MKD[place], dim=1).numpy()
            np.testing.assert_allclose(got, wanted, atol=1e-6)
    np.testing.assert_array_equal(table.columns["interest_age_secs"], [np.nan, 1, 1, 10, 1, 10, np.nan])


def test_stored_interests_grow_stale():
    stored = interests([1, 2], [-86_400, -86_401])
    candidates = pd.DataFrame({"user_id": [1, 2], "item_id": [101, 101]})
    table = ranking_features(
        candidates, log([(1, 100, -30)]), NOW, FeatureSpec(ttl_days=1), model=mean_model(), interests=stored,
        manager=MANAGER,
    )  # fmt: skip
    assert table.isnull("sim_max").tolist() == [False, True]


def test_interests_of_another_model_are_refused():
    with pytest.raises(
        UsageError, match="the interests come from model ffffffffffff, the item vectors from model 0000"
    ):
        FeatureEngine(
            log([(1, 100, -3)]), model=mean_model(), interests=interests([1], [-5], "f" * 64), manager=MANAGER
        )


def test_infinite_interests_are_refused():
    with pytest.raises(SchemaError, match="the vector of user 7 is infinite"):
        StoredInterests(np.array([7]), np.array([0]), torch.full((1, 1, DIM), torch.inf), "0")
    with pytest.raises(SchemaError, match="give one time and one"):
        StoredInterests(np.array([7]), np.array([0, 1]), torch.zeros(1, 1, DIM), "0")


def test_nan_vectors_are_null_and_nothing_else():
    model = mean_model(1)
    model.item_vectors_VD[2] = torch.nan
    candidates = pd.DataFrame({"user_id": [1, 1], "item_id": [101, 102]})
    table = ranking_features(candidates, log([(1, 100, -3.0), (1, 101, -2.0)]), NOW, model=model, manager=MANAGER)
    assert table.isnull("hist_sim_max").tolist() == [True, False]  # the event with a vector still counts
    assert table.isnull("item_vec").tolist() == [True, False]
    assert table.columns["n_same_item"].tolist() == [1, 0]


def test_counts_go_beyond_the_history_that_is_read():
    events = log([(1, 100 + n % 8, -float(n)) for n in range(1, 500)])
    candidates = pd.DataFrame({"user_id": [1], "item_id": [101]})
    table = ranking_features(
        candidates, events, NOW, FeatureSpec(history_length=3), model=mean_model(), manager=MANAGER
    )
    assert table.columns["n_events"][0] == table.columns["n_events_1h"][0] == 499
    assert table.columns["session_len"][0] == 3


def test_a_million_events_of_one_user():
    """Only the latest are read; memory stays far below what all cosines would take (64 GB)."""
    n_events = 1_000_000
    random = np.random.default_rng(0)
    sequences = Sequences(
        np.array([1]), np.array([0, n_events]), random.integers(0, 9, n_events), NOW_US - np.arange(n_events, 0, -1)
    )
    candidates = pd.DataFrame({"user_id": 1, "item_id": random.integers(99, 109, 500)})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    table = ranking_features(candidates, sequences, NOW, model=mean_model(), manager=MANAGER)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 200
    assert (table.columns["n_events"] == n_events).all()
    short = sequences.latest(2_000)  # more than the encoder and the features read
    alone = ranking_features(candidates, short, NOW, model=mean_model(), manager=MANAGER)
    for name in table.names:
        if not name.startswith("n_events"):
            assert table.columns[name].tobytes() == alone.columns[name].tobytes(), name


def parity(run, frame, n_requests):
    """Offline in one table, online one request after the other: every byte of every column."""
    model = InterestModel.from_run(run)
    events = Events.from_frame(frame)
    random = np.random.default_rng(0)
    users, items = frame["user_id"].unique(), frame["item_id"].unique()
    times = frame["timestamp"].sample(n_requests, random_state=0, replace=True).to_numpy()
    size = random.integers(1, 30, n_requests)
    candidates = pd.DataFrame(
        {
            "user_id": np.repeat(random.choice(users, n_requests), size),
            "item_id": random.choice(np.append(items, 999_999), size.sum()),
            "at": np.repeat(times, size),
        }
    )
    candidates["at"] = pd.to_datetime(candidates["at"], utc=True)
    offline = ranking_features(candidates, events, model=model, allow_future_model=True, manager=MANAGER)
    engine = FeatureEngine(
        Sequences.from_events(events, model.vocabulary), model=model, allow_future_model=True, manager=MANAGER
    )
    start = 0
    for request in range(n_requests):
        stop = start + size[request]
        asked = candidates[start:stop]
        online = engine.features(asked[["user_id", "item_id"]], asked["at"].iloc[0])
        for name in offline.names:
            assert online.columns[name].tobytes() == offline.columns[name][start:stop].tobytes(), (request, name)
        start = stop


def test_offline_and_online_are_the_same_bytes(tiny_run, tiny_frame):
    parity(tiny_run, tiny_frame, 60)


def test_wide_interests_are_the_same_bytes_in_calls_of_any_size(tiny_run, tiny_frame, monkeypatch):
    model = InterestModel.from_run(tiny_run)
    histories = Sequences.from_events(Events.from_frame(tiny_frame), model.vocabulary)
    whole = model.encode(histories, wide=True)
    monkeypatch.setattr("bseq_plugin.model.interest_model.EVENTS_PER_CALL", 40)
    assert whole.numpy().tobytes() == model.encode(histories, wide=True).numpy().tobytes()
    torch.testing.assert_close(whole, model.encode(histories), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_offline_and_online_are_the_same_bytes_for_a_thousand_requests(tiny_run, tiny_frame):
    parity(tiny_run, tiny_frame, 1_000)


def test_a_history_given_with_the_request_stands_in_for_the_log():
    rows = [(1, 100, -9.0), (1, 103, -5.0), (2, 104, -4.0)]
    candidates = pd.DataFrame({"user_id": [1, 1], "item_id": [101, 103]})
    engine = FeatureEngine(log([(2, 104, -4.0)]), model=mean_model(), manager=MANAGER)
    whole = ranking_features(candidates, log(rows), NOW, model=mean_model(), manager=MANAGER)
    same_bytes(engine.features(candidates, NOW, history=log(rows)), whole)


def test_request_ids_are_passed_through():
    candidates = pd.DataFrame({"user_id": [1, 2], "item_id": [101, 103], "request_id": ["a", "b"]})
    table = ranking_features(candidates, log([(1, 100, -9.0)]), NOW, model=mean_model(), manager=MANAGER)
    assert table.to_arrow()["request_id"].to_pylist() == table.to_pandas()["request_id"].tolist() == ["a", "b"]


def test_a_digest_tells_models_apart(tiny_run):
    model, again = InterestModel.from_run(tiny_run), InterestModel.from_run(tiny_run)
    assert model.digest == again.digest
    state = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    next(iter(state.values())).view(-1)[0] += 1
    other = InterestModel.from_state(model.recipe, model.vocabulary, state, None, model.trained_until_us)
    assert other.digest != model.digest
    fewer = replace(model, recipe=model.recipe.replace(encoder={"max_length": 9}))
    assert fewer.digest != model.digest
