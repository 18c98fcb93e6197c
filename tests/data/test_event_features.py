"""Event features against plain Python, and the events that are unlike any other."""

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bseq_plugin import Events, Recipe, RecipeError, SchemaError, Sequences, Vocabulary, history_features, read_events
from bseq_plugin.data.event_features import (
    N_POSITIONS,
    TABLE_ROWS,
    EventInputs,
    hours_of_week,
    session_numbers,
    session_positions,
    time_gap_buckets,
    value_buckets,
)
from bseq_plugin.data.partitions import PartitionedSequences
from bseq_plugin.data.prepare import prepare, resolved
from bseq_plugin.readers.build_sequences import build_sequences

SECOND = 1_000_000
ALL = ("event_type", "time_gap", "time_of_week", "session", "value")


def sequences(lengths, times=None, sessions=None, values=None):
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    n = int(offsets[-1])
    return Sequences(
        np.arange(len(lengths)),
        offsets,
        np.ones(n, np.int64),
        None if times is None else np.array(times, np.int64),
        np.zeros(n, np.int64),
        None if sessions is None else np.array(sessions, np.int64),
        values=None if values is None else np.array(values, np.float64),
    )


@given(st.lists(st.integers(0, 2_000_000_000), min_size=1, max_size=20))
@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/St_Johns", "Asia/Kathmandu"])
@settings(max_examples=40, deadline=None)
def test_hours_of_the_week_are_those_of_a_clock(zone, seconds):
    found = hours_of_week(sequences([len(seconds)], [s * SECOND for s in seconds]), zone)
    clocks = [(datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=s)).astimezone(ZoneInfo(zone)) for s in seconds]
    assert found.tolist() == [c.weekday() * 24 + c.hour for c in clocks]
    assert found.dtype == np.int64


def naive_sessions(users, starts_anew):
    """(positions, numbers) by walking through each history."""
    positions, numbers = [], []
    for user in users:
        for place, event in enumerate(user):
            if place == 0:
                position, number = 0, 0
            elif starts_anew(user[place - 1], event):
                position, number = 0, number + 1
            else:
                position += 1
            positions.append(position)
            numbers.append(number)
    return positions, numbers


@given(st.lists(st.lists(st.integers(0, 4 * 3600), max_size=8).map(sorted), min_size=1, max_size=5), st.booleans())
@settings(max_examples=100, deadline=None)
def test_sessions_are_those_of_a_walk(users, with_ids):
    """Without ids a gap of more than half an hour begins one; with ids another id does, whatever the gap."""
    flat = [t for user in users for t in user]
    ids = [t // 3600 for t in flat] if with_ids else None
    given_ = sequences([len(u) for u in users], [t * SECOND for t in flat], ids)
    anew = (lambda a, b: a // 3600 != b // 3600) if with_ids else (lambda a, b: b - a > 1800)
    positions, numbers = naive_sessions(users, anew)
    assert session_positions(given_, 1800 * SECOND).tolist() == positions
    assert session_numbers(given_, 1800 * SECOND).tolist() == numbers
    features = EventInputs(("session",), session_gap_us=1800 * SECOND).rows(given_)
    assert features["session"].tolist() == [min(p, N_POSITIONS - 1) for p in positions]


@given(st.lists(st.floats(-1e12, 1e12) | st.just(math.nan) | st.just(math.inf), max_size=30))
@settings(max_examples=100, deadline=None)
def test_values_fall_into_half_octaves(values):
    expected = []
    for value in values:
        if math.isnan(value):
            expected.append(0)
        elif abs(value) < 2**-7:
            expected.append(1)
        else:
            octave = 63 if abs(value) >= 2**25 else min(63, int(2 * np.log2(abs(value) * 2**7)))
            expected.append(2 + octave + (64 if value < 0 else 0))
    found = value_buckets(sequences([len(values)], values=values))
    assert found.tolist() == expected
    assert found.max(initial=0) < TABLE_ROWS["value"]


def test_values_by_hand():
    values = [0.0, -0.001, 2**-7, 0.99, 1.0, 1.42, 2.0, -1.0, math.nan]
    assert value_buckets(sequences([9], values=values)).tolist() == [1, 1, 2, 15, 16, 17, 18, 80, 0]


YEAR = 365 * 86_400 * SECOND
CORNERS = {
    "one instant": sequences([4, 1], [5 * YEAR] * 5, values=[1, 1, 1, 1, 1]),
    "gaps of years": sequences([3, 2], [0, 10 * YEAR, 50 * YEAR, YEAR, 41 * YEAR], values=[0, 1e300, -1e300, 2, 3]),
    "sessions of one event": sequences([3, 2], [0, 1, 2, 3, 4], [0, 1, 2, 0, 1], [1, 2, 3, 4, 5]),
    "a session of a thousand": sequences([1000], [0] * 1000, [7] * 1000, [1] * 1000),
    "nobody": sequences([0, 0], [], [], []),
}


@pytest.mark.parametrize("name", CORNERS)
def test_every_row_is_in_its_table(name):
    log = CORNERS[name]
    rows = EventInputs(ALL, "Europe/Berlin").rows(log)
    assert list(rows) == list(ALL)
    for feature, found in rows.items():
        assert len(found) == log.n_events
        assert found.dtype == np.int64
        assert feature == "event_type" or (len(found) == 0 or 0 <= found.min() <= found.max() < TABLE_ROWS[feature])


def test_the_corners_by_hand():
    assert session_positions(CORNERS["one instant"], SECOND).tolist() == [0, 1, 2, 3, 0]
    assert time_gap_buckets(CORNERS["one instant"]).tolist() == [0, 1, 1, 1, 0]
    assert session_positions(CORNERS["sessions of one event"], SECOND).tolist() == [0] * 5
    assert session_numbers(CORNERS["sessions of one event"], SECOND).tolist() == [0, 1, 2, 0, 1]
    assert session_numbers(CORNERS["gaps of years"], SECOND).tolist() == [0, 1, 2, 0, 1]
    assert time_gap_buckets(CORNERS["gaps of years"]).tolist() == [0, 29, 31, 0, 31]
    assert EventInputs(("session",)).rows(CORNERS["a session of a thousand"])["session"].max() == N_POSITIONS - 1


def test_what_is_missing_is_named():
    bare = sequences([2])
    for feature, what in (("value", "values"), ("session", "sessions"), ("time_of_week", "time of the week")):
        with pytest.raises(ValueError, match=f"reads {what}|reads the {what}"):
            history_features(bare, (feature,))


@given(st.lists(st.sampled_from(ALL), unique=True), st.booleans(), *[st.booleans()] * 3)
@settings(max_examples=60, deadline=None)
def test_what_is_lacking_is_what_can_not_be_computed(features, sessions, has_times, has_ids, has_values):
    log = sequences([2], [1, 2] if has_times else None, [1, 1] if has_ids else None, [1, 2] if has_values else None)
    inputs = EventInputs(tuple(features), sessions=sessions)
    try:
        history_features(log, inputs)
        fails = False
    except ValueError:
        fails = True
    assert bool(inputs.lacking(log)) == fails


def test_a_time_zone_is_checked_where_it_is_written():
    with pytest.raises(RecipeError, match=r"time_zone = 'Mars/Base' is not known here; give an IANA name"):
        Recipe(events={"time_zone": "Mars/Base"})
    with pytest.raises(RecipeError, match="session_gap_minutes = 0"):
        Recipe(events={"session_gap_minutes": 0})


FRAME = pd.DataFrame(
    {
        "user_id": [1, 1, 1, 2, 2, 3],
        "item_id": [10, 20, 10, 20, 10, 10],
        "timestamp": pd.to_datetime([100, 200, 9000, 100, 9000, 300], unit="D", utc=True).map(
            lambda t: t + pd.Timedelta(days=7000)
        ),
        "event_type": ["buy", "view", "buy", "view", "buy", "view"],
        "session_id": [5, 5, 6, 7, 8, 9],
        "value": [1.5, None, -2.0, 3.0, 0.0, 7.0],
    }
)


def frame():
    return FRAME.assign(timestamp=pd.to_datetime([1, 2, 3, 1, 3, 2], unit="D", utc=True, origin="2020-01-01"))


def test_sequences_keep_values_on_disk_and_under_every_cut(tmp_path):
    events = Events.from_frame(frame())
    vocabulary = Vocabulary.from_events(events)
    made = Sequences.from_events(events, vocabulary)
    np.testing.assert_array_equal(made.values, [1.5, np.nan, -2.0, 3.0, 0.0, 7.0])
    made.save(tmp_path / "s.parquet", vocabulary)
    back = Sequences.load(tmp_path / "s.parquet", vocabulary)
    np.testing.assert_array_equal(back.values, made.values)
    np.testing.assert_array_equal(made.latest(1).values, [-2.0, 0.0, 7.0])
    np.testing.assert_array_equal(made.take(np.array([2, 1])).values, [7.0, 3.0, 0.0])
    np.testing.assert_array_equal(Sequences.join([made, back]).values, [*made.values, *made.values])
    again = read_events(str(tmp_path / "s.parquet"))  # the form of lists is a source like any other
    np.testing.assert_array_equal(again.frame["value"], made.values)


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_partitions_keep_values(tmp_path, suffix):
    path = tmp_path / f"log.{suffix}"
    log = frame()
    log.to_parquet(path) if suffix == "parquet" else log.to_csv(path, index=False)
    built = build_sequences(str(path), tmp_path / "parts", partitions=2)
    assert built.columns[-1] == "values"
    read = PartitionedSequences.open(tmp_path / "parts").read_all(built.vocabulary)
    order = np.argsort(read.user_ids)
    np.testing.assert_array_equal(read.take(order).values, [1.5, np.nan, -2.0, 3.0, 0.0, 7.0])
    assert resolved(built, Recipe(events={"features": ALL})).events.features == ALL


def test_values_that_are_no_numbers_are_refused_before_anything_is_written(tmp_path):
    path = tmp_path / "log.csv"
    frame().assign(value=["1", "2", "much", "4", "5", "6"]).to_csv(path, index=False)
    with pytest.raises(SchemaError, match=r"column 'value' \(value\): row 2 .*'much'. is no number"):
        build_sequences(str(path), tmp_path / "parts")
    assert not (tmp_path / "parts").exists()


def test_a_recipe_reads_what_the_log_has():
    wanted = Recipe(events={"features": ALL}, split="none")
    every = Events.from_frame(frame())
    assert prepare(every, wanted).recipe.events.features == ALL
    bare = Events.from_frame(frame()[["user_id", "item_id", "timestamp"]])
    assert prepare(bare, wanted).recipe.events.features == ("time_gap", "time_of_week", "session")
    ordered = Events.in_order(np.array([1, 1]), np.array([1, 2]))
    assert prepare(ordered, wanted).recipe.events.features == ()


def test_an_encoder_of_sessions_needs_session_ids_or_times():
    recipe = Recipe(encoder={"name": "cross_session", "gap": False}, split="none")
    with pytest.raises(SchemaError, match="'cross_session' reads sessions, and the log has neither"):
        prepare(Events.in_order(np.array([1, 1]), np.array([1, 2])), recipe)
    read = prepare(Events.from_frame(frame()), recipe).recipe
    assert EventInputs.of(read.events, read.encoder).sessions


def test_a_cut_history_has_the_features_of_what_is_read():
    """The first event that is read begins a session and has no gap, in training as in serving."""
    log = sequences([5], [0, 1, 2, 3, 4], [1, 1, 1, 1, 2])
    cut = EventInputs(("session", "time_gap")).rows(log.latest(3))
    assert cut["session"].tolist() == [0, 1, 0]
    assert cut["time_gap"].tolist() == [0, 1, 1]
    assert replace(log, session_ids=None).latest(2).n_events == 2
