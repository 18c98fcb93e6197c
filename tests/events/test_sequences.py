import time
import tracemalloc

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bseq_plugin import Events, SchemaError, Sequences, Vocabulary

SECONDS = 1_600_000_000
COLUMNS = ("items", "timestamps", "event_types", "session_ids")


def lists(sequences, name="items"):
    values = getattr(sequences, name)
    return [values[a:b].tolist() for a, b in zip(sequences.offsets[:-1], sequences.offsets[1:], strict=True)]


def same(a, b):
    assert a.user_ids.tolist() == b.user_ids.tolist()
    assert a.offsets.tolist() == b.offsets.tolist()
    for name in COLUMNS:
        one, other = getattr(a, name), getattr(b, name)
        assert (one is None) == (other is None), name
        assert one is None or one.tolist() == other.tolist(), name


rows = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 5), st.integers(0, 3), st.sampled_from(["a", "b"]), st.integers(0, 2)),
    min_size=1,
    max_size=40,
)


def to_frame(events, strings):
    frame = pd.DataFrame(events, columns=["user_id", "item_id", "timestamp", "event_type", "session_id"])
    frame["timestamp"] += SECONDS
    if strings:
        for name in ("user_id", "item_id", "session_id"):
            frame[name] = "é" + frame[name].astype(str)
    return frame


@given(rows, st.booleans(), st.integers(1, 3))
@settings(max_examples=80, deadline=None)
def test_from_events_is_a_dict_of_sorted_lists(events, strings, at_least):
    frame = to_frame(events, strings)
    log = Events.from_frame(frame, timestamp_unit="s")
    counts = frame.item_id.value_counts()
    if counts.max() < at_least:
        return
    vocabulary = Vocabulary.from_events(log, at_least)
    known = sorted(i for i in counts.index if counts[i] >= at_least)
    types = sorted(set(frame.event_type))
    naive = {}
    for row in frame.itertuples(index=False):
        naive.setdefault(row.user_id, []).append(row)
    found = Sequences.from_events(log, vocabulary)
    assert found.user_ids.tolist() == sorted(naive)
    expected = [sorted(naive[user], key=lambda row: row.timestamp) for user in sorted(naive)]  # stable
    assert lists(found) == [[known.index(r.item_id) + 1 if r.item_id in known else 0 for r in h] for h in expected]
    assert lists(found, "timestamps") == [[r.timestamp * 1_000_000 for r in h] for h in expected]
    assert lists(found, "event_types") == [[types.index(r.event_type) + 1 for r in h] for h in expected]
    # session numbers are ours, but two events have equal ones exactly if the log says so
    pairs = {
        (s, r.session_id)
        for h, ss in zip(expected, lists(found, "session_ids"), strict=True)
        for s, r in zip(ss, h, strict=True)
    }
    assert len(pairs) == len({s for s, _ in pairs}) == len({s for _, s in pairs})


@given(rows, st.booleans(), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_parquet_round_trip(tmp_path_factory, events, strings, at_least):
    log = Events.from_frame(to_frame(events, strings), timestamp_unit="s")
    if log.frame.item_id.value_counts().max() < at_least:
        return
    vocabulary = Vocabulary.from_events(log, at_least)
    before = Sequences.from_events(log, vocabulary)
    path = tmp_path_factory.mktemp("sequences") / "sequences.parquet"
    before.save(path, vocabulary)
    same(Sequences.load(path, vocabulary), before)
    ids = pq.read_table(path)["item_ids"].to_pylist()
    rows_on_disk = [[None if row == 0 else vocabulary.item_ids[row - 1] for row in h] for h in lists(before)]
    assert ids == rows_on_disk


def test_another_vocabulary_reads_the_ids_in_its_own_rows(tmp_path):
    old, new = Vocabulary(np.array([10, 20]), np.ones(2)), Vocabulary(np.array([5, 20, 30]), np.ones(3))
    Sequences(np.array([1]), np.array([0, 3]), np.array([1, 2, 0])).save(tmp_path / "s.parquet", old)
    assert lists(Sequences.load(tmp_path / "s.parquet", new)) == [[0, 2, 0]]


def test_a_file_that_another_tool_wrote(tmp_path):
    """Ordinary lists, small integers, several row groups, a null event type."""
    table = pa.table(
        {
            "user_id": pa.array([3, 1, 2], pa.int32()),
            "item_ids": pa.array([[10, 20], [], [99]], pa.list_(pa.int32())),
            "timestamps": pa.array([[1, 2], [], [3]], pa.list_(pa.int64())),
            "event_types": pa.array([["buy", None], [], ["view"]]),
        }
    )
    pq.write_table(table, tmp_path / "s.parquet", row_group_size=1)
    found = Sequences.load(tmp_path / "s.parquet", Vocabulary(np.array([10, 20]), np.ones(2), ("buy",)))
    assert (lists(found), lists(found, "event_types")) == ([[1, 2], [], [0]], [[1, 0], [], [0]])
    assert found.user_ids.tolist() == [3, 1, 2]


def test_a_broken_file_is_refused(tmp_path):
    vocabulary, path = Vocabulary(np.array([10, 20]), np.ones(2)), tmp_path / "s.parquet"
    pq.write_table(pa.table({"user_id": [1]}), path)
    with pytest.raises(SchemaError, match=r"s.parquet lacks column 'item_ids'; found \['user_id'\]"):
        Sequences.load(path, vocabulary)
    pq.write_table(pa.table({"user_id": [1], "item_ids": [[10, 20]], "timestamps": [[1]]}), path)
    with pytest.raises(SchemaError, match="lists of 'timestamps' and 'item_ids' differ"):
        Sequences.load(path, vocabulary)


@st.composite
def histories(draw):
    users = draw(st.lists(st.lists(st.integers(0, 9), max_size=6), min_size=1, max_size=6))
    lengths = [len(u) for u in users]
    n = sum(lengths)
    return Sequences(
        np.arange(len(users)) + 100,
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.array([i for u in users for i in u], np.int64),
        np.sort(np.array(draw(st.lists(st.integers(0, 9), min_size=n, max_size=n)), np.int64)),
    )


@given(histories(), st.data())
@settings(max_examples=80, deadline=None)
def test_selections_are_those_of_lists(sequences, data):
    own, times = lists(sequences), lists(sequences, "timestamps")
    users = np.array(data.draw(st.lists(st.integers(0, len(own) - 1), max_size=6)), np.int64)
    n = data.draw(st.integers(1, 7))
    cut = data.draw(st.integers(0, 10))
    keep = np.array(
        data.draw(st.lists(st.booleans(), min_size=len(sequences.items), max_size=len(sequences.items))), bool
    )
    taken = sequences.take(users)
    assert (lists(taken), taken.user_ids.tolist()) == ([own[u] for u in users], [100 + u for u in users])
    assert lists(taken, "timestamps") == [times[u] for u in users]
    assert lists(sequences.latest(n)) == [h[-n:] for h in own]
    assert lists(sequences.without_last(n)) == [h[:-n] for h in own]
    assert lists(sequences.known()) == [[i for i in h if i] for h in own]
    where = sequences.where(keep)
    flags = np.split(keep, sequences.offsets[1:-1])
    assert lists(where) == [[i for i, k in zip(h, f, strict=True) if k] for h, f in zip(own, flags, strict=True)]
    assert where.user_ids.tolist() == sequences.user_ids.tolist()
    expected = [[i for i, t in zip(h, ts, strict=True) if 3 <= t < cut] for h, ts in zip(own, times, strict=True)]
    assert lists(sequences.between(3, cut)) == expected
    starts = np.array([data.draw(st.integers(0, len(own[u]))) for u in users], np.int64)
    ends = np.array([data.draw(st.integers(s, len(own[u]))) for u, s in zip(users, starts, strict=True)], np.int64)
    base = sequences.offsets[:-1][users]
    sliced = lists(sequences.slices(users, base + starts, base + ends))
    assert sliced == [own[u][s:e] for u, s, e in zip(users, starts, ends, strict=True)]
    assert sequences.user_index.tolist() == [u for u, h in enumerate(own) for _ in h]


@given(histories(), st.integers(1, 7), st.integers(1, 7))
@settings(max_examples=40, deadline=None)
def test_laws_of_selections(sequences, m, n):
    same(sequences.take(np.arange(sequences.n_users)), sequences)
    same(sequences.where(np.ones(sequences.n_events, bool)), sequences)
    same(sequences.latest(m).latest(n), sequences.latest(min(m, n)))
    same(sequences.between(None, None), sequences)


def test_an_order_only_log_has_no_times_to_cut_at():
    events = Events.in_order(np.array([1, 2, 1]), np.array(["a", "b", "c"], object))
    sequences = Sequences.from_events(events, Vocabulary.from_events(events))
    assert (lists(sequences), sequences.timestamps) == ([[1, 3], [2]], None)
    with pytest.raises(SchemaError, match="has no times"):
        sequences.between(None, 5)


def test_a_million_events_of_one_user_are_cut_without_an_object_an_event():
    """The whole way, validation included: in seconds, in memory of a few times the arrays' own 8 MB each."""
    n = 1_000_000
    random = np.random.default_rng(0)
    items = random.integers(0, 1000, n)
    times = random.permutation(n) + SECONDS
    frame = pd.DataFrame({"user_id": 7, "item_id": items, "timestamp": times})
    tracemalloc.start()
    started = time.process_time()
    events = Events.from_frame(frame, timestamp_unit="s")
    latest = Sequences.from_events(events, Vocabulary.from_events(events)).latest(50)
    seconds = time.process_time() - started
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert latest.items.tolist() == (items[np.argsort(times)][-50:] + 1).tolist()
    assert seconds < 5, seconds
    assert peak < 200e6, peak  # a list of a million ints and times alone takes 72 MB, a tuple an event 150 MB more
