"""Histories of a host's rows, each as of its own time."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bseq_plugin as bseq
from bseq_plugin.data.batches import history_features
from bseq_plugin.data.histories import histories_before
from bseq_plugin.ranking.requests import Histories, Requests

START = 1_600_000_000_000_000
RECIPE = bseq.Recipe(encoder={"name": "mean", "max_length": 3}, events={"features": ("event_type", "time_gap")})


def log_of(users, *, late=True, strings=False):
    """Users as lists of (time, row, how late it arrived), oldest first; every second event is of another type."""
    flat = [event for user in users for event in user]
    times, items, delays = np.array(flat, np.int64).reshape(-1, 3).T
    offsets = np.concatenate([[0], np.cumsum([len(user) for user in users])]).astype(np.int64)
    ids = np.arange(len(users)) * 10 + 5
    return bseq.Sequences(
        np.array([f"ü{i}" for i in ids], object) if strings else ids,
        offsets,
        items.copy(),
        START + times,
        1 + np.arange(len(flat)) % 2,
        created=START + times + delays if late else None,
    )


event = st.tuples(st.integers(0, 9), st.integers(0, 99), st.sampled_from([0, 0, 0, 2, 7]))
logs = st.lists(st.lists(event, max_size=8).map(lambda user: sorted(user, key=lambda e: e[0])), max_size=5)


def rows_of(log):
    return st.lists(st.tuples(st.integers(0, log.n_users), st.integers(0, 18)), max_size=8)


def of_a_loop(log, users, times, max_length):
    """For each row the places in the log of what it may know."""
    found = []
    for user, at in zip(users, times, strict=True):
        mine = [place for place in range(log.n_events) if log.user_ids[log.user_index[place]] == user]
        arrived = log.timestamps if log.created is None else log.created
        known = [place for place in mine if log.timestamps[place] < at and arrived[place] <= at]
        found.append(known[-max_length:])
    return found


@given(logs, st.data(), st.booleans(), st.booleans(), st.integers(1, 5))
@settings(max_examples=150, deadline=None)
def test_rows_know_what_a_loop_finds_and_what_ranking_reads(users, data, late, strings, max_length):
    log = log_of(users, late=late, strings=strings)
    rows = data.draw(rows_of(log))
    nobody = "nobody" if strings else 4
    ids = np.array([log.user_ids[u] if u < log.n_users else nobody for u, _ in rows], object if strings else np.int64)
    at = START + np.array([t for _, t in rows], np.int64)
    found = histories_before(log, ids, at, max_length)
    expected = of_a_loop(log, ids, at, max_length)
    assert found.lengths.tolist() == [len(places) for places in expected]
    flat = [place for places in expected for place in places]
    for column in ("items", "timestamps", "event_types"):
        assert getattr(found, column).tolist() == getattr(log, column)[flat].tolist()
    assert found.user_ids.tolist() == ids.tolist()
    if late and len(ids) and log.n_users:  # the same as the features of a ranker
        of_ranking = Histories.cut(log, Requests(ids, at, np.arange(len(ids))), None)
        starts, ends = of_ranking.starts_R, of_ranking.ends_R
        assert [
            of_ranking.log.items[max(s, e - max_length) : e].tolist() for s, e in zip(starts, ends, strict=True)
        ] == [log.items[places].tolist() for places in expected]


def test_features_of_rows_by_hand():
    log = log_of([[(0, 7, 0), (1, 8, 0), (1, 9, 0), (4, 6, 0)], [(2, 5, 0)]], late=False)
    rows = pd.DataFrame({"user_id": [5, 15, 5, 99, 5], "at_us": START + np.array([4, 2, 5, 9, 0])})
    found = bseq.history_features_at(log, rows["user_id"], rows["at_us"], RECIPE)
    assert found.keys() == ["timestamp", "event", "event_type", "time_gap"]
    assert [row.tolist() for row in found["event"].to_dense()] == [[7, 8, 9], [], [8, 9, 6], [], []]
    assert found["time_gap"].values().tolist() == [0, 1, 1, 0, 1, 1]
    assert (found.values().dtype, found.lengths().dtype, found.stride()) == (torch.int64, torch.int64, 5)
    one = bseq.history_features_at(log, [5, 15], START + 3, RECIPE)
    assert [row.tolist() for row in one["event"].to_dense()] == [[7, 8, 9], [5]]
    none = bseq.history_features_at(log, np.empty(0, np.int64), np.empty(0, np.int64), RECIPE)
    assert (none.stride(), len(none.values())) == (0, 0)


def test_what_comes_later_changes_nothing():
    users = [[(0, 1, 0), (1, 2, 0)], [(0, 3, 0)]]
    later = [[*users[0], (2, 9, 0), (3, 9, 0)], [*users[1], (2, 9, 0)]]
    asked = ([5, 15], START + 2)
    found = [bseq.history_features_at(log_of(log), *asked, RECIPE) for log in (users, later)]
    assert found[0]["event"].values().tolist() == found[1]["event"].values().tolist() == [1, 2, 3]


def test_the_log_is_looked_through_once():
    log = log_of([[(0, 1, 0)]])
    bseq.history_features_at(log, [5], START + 1, RECIPE)
    assert log.known_users is log.known_users
    assert "latest_created" in vars(log)


def test_rows_that_do_not_fit_the_log_are_refused():
    log = log_of([[(0, 1, 0), (1, 2, 0)], [(0, 3, 0)]])

    def ask(users=(5,), at=START, log=log):
        return bseq.history_features_at(log, users, at, RECIPE)

    with pytest.raises(
        bseq.SchemaError, match="user_id is str here, for example .5.; the events' are integers, for example 5: they"
    ):
        ask(["5"])
    for at in (START // 1_000_000, START // 1000, START * 1000):
        with pytest.raises(bseq.SchemaError, match="before 1990 or ahead of now"):
            ask(at=at)
    for at in (START / 1.0, np.array([START, START]), np.array(["2020-01-01"], "datetime64[us]")):
        with pytest.raises(bseq.SchemaError, match=r"give microseconds UTC as int64 \[1\], or one for all"):
            ask(at=at)
    with pytest.raises(bseq.SchemaError, match="no times"):
        ask(log=replace(log, timestamps=None))
    with pytest.raises(bseq.SchemaError, match="user 5 stands twice"):
        ask(log=log.take(np.array([1, 0, 0])))
    with pytest.raises(bseq.SchemaError, match="user 5 .* not oldest first"):
        ask(log=replace(log, timestamps=log.timestamps[[1, 0, 2]]))
    with pytest.raises(ValueError, match="reads event types"):
        ask(log=replace(log, event_types=None))


def test_they_are_the_features_of_histories_cut_by_hand():
    log = log_of([[(t, t, 0) for t in range(6)], [(1, 1, 0)]], late=False)
    found = bseq.history_features_at(log, log.user_ids, START + 4, RECIPE)
    expected = history_features(log.between(None, START + 4).latest(3), RECIPE)
    assert found.keys() == expected.keys()
    assert torch.equal(found.values(), expected.values())
    assert torch.equal(found.lengths(), expected.lengths())
