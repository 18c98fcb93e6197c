import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bseq_plugin import PopularityPrior, SchemaError, Sequences, Vocabulary, history_features
from bseq_plugin.data.event_features import N_TIME_GAPS, time_gap_buckets
from bseq_plugin.data.items import ItemAttributes
from bseq_plugin.events.events import DAY_US


def sequences(items, times=None, types=None):
    def flat(rows):
        return None if rows is None else np.array([x for row in rows for x in row], np.int64)

    offsets = np.concatenate([[0], np.cumsum([len(x) for x in items])]).astype(np.int64)
    return Sequences(np.arange(len(items)), offsets, flat(items), flat(times), flat(types))


times_of_users = st.lists(st.lists(st.integers(0, 2**60), max_size=6).map(sorted), min_size=1, max_size=6)


@given(times_of_users)
@settings(max_examples=100, deadline=None)
def test_time_gaps_are_log_seconds_since_the_event_before(times):
    expected = []
    for user in times:
        for place, time in enumerate(user):
            seconds = 0 if place == 0 else (time - user[place - 1]) // 1_000_000
            # integers: a logarithm in floats may fall on the wrong side of a power of two
            bucket = 0 if place == 0 else 1 + (seconds + 1).bit_length() - 1
            expected.append(min(bucket, N_TIME_GAPS - 1))
    found = time_gap_buckets(sequences([[1] * len(t) for t in times], times))
    assert found.tolist() == expected
    assert found.dtype == np.int64


@pytest.mark.parametrize(
    ("seconds", "bucket"), [(0, 1), (1, 2), (2, 2), (3, 3), (86_400, 17), (2**30, 31), (2**40, 31)]
)
def test_time_gap_of_one_step(seconds, bucket):
    assert time_gap_buckets(sequences([[1, 1]], [[0, seconds * 1_000_000]])).tolist() == [0, bucket]


def test_history_features_by_hand():
    log = sequences([[4, 5, 6], [], [7]], [[0, 0, 3_000_000], [], [9]], [[1, 2, 1], [], [2]])
    extra = {"target": (np.array([8, 9]), np.array([1, 0, 1]))}
    found = history_features(log, ("event_type", "time_gap"), extra)
    assert found.keys() == ["timestamp", "event", "event_type", "time_gap", "target"]
    assert found.stride() == 3
    by_hand = {
        "timestamp": ([0, 0, 3_000_000, 9], [3, 0, 1]),
        "event": ([4, 5, 6, 7], [3, 0, 1]),
        "event_type": ([1, 2, 1, 2], [3, 0, 1]),
        "time_gap": ([0, 1, 3, 0], [3, 0, 1]),
        "target": ([8, 9], [1, 0, 1]),
    }
    for key, (values, lengths) in by_hand.items():
        assert found[key].values().tolist() == values, key
        assert found[key].lengths().tolist() == lengths, key
        assert found[key].values().dtype == torch.int64


def test_history_features_of_nobody_and_of_empty_histories():
    for n in (0, 2):
        found = history_features(sequences([[]] * n, [[]] * n), ("time_gap",))
        assert (found.stride(), found["event"].values().numel(), len(found["time_gap"].lengths())) == (n, 0, n)


def test_features_that_the_histories_lack_are_named():
    with pytest.raises(ValueError, match="reads event types"):
        history_features(sequences([[1]], [[0]]), ("event_type",))
    with pytest.raises(ValueError, match="reads time gaps"):
        history_features(sequences([[1]]), ("time_gap",))


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 5)), max_size=8), min_size=1, max_size=5),
    st.integers(0, 25),
)
@settings(max_examples=80, deadline=None)
def test_popularity_counts_each_user_once_in_the_days_before(users, at):
    users = [sorted(u) for u in users]
    log = sequences([[i for _, i in u] for u in users], [[t * DAY_US for t, _ in u] for u in users])
    days = (2.0, 7.5, 1000.0)
    expected = np.zeros((6, 3), np.float32)
    for item in range(1, 6):
        for place, span in enumerate(days):
            who = {n for n, u in enumerate(users) for t, i in u if i == item and at - span <= t < at}
            expected[item, place] = math.log1p(len(who))
    found = PopularityPrior(log, 5, days).at(at * DAY_US)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_popularity_needs_times():
    with pytest.raises(SchemaError, match="popularity_days needs a log with times"):
        PopularityPrior(sequences([[1]]), 1, (7.0,))
    PopularityPrior(sequences([[1]]), 1, ())


@st.composite
def catalogues(draw):
    vocabulary = Vocabulary(np.array(sorted(draw(st.sets(st.integers(0, 9), min_size=1)))), np.ones(1))
    listed = draw(st.lists(st.integers(0, 12), unique=True, max_size=10))
    shelf = [draw(st.sampled_from(["a", "b", "c", None])) for _ in listed]
    weight = [draw(st.sampled_from([1.5, 2.0, float("nan")])) for _ in listed]
    frame = pd.DataFrame({"item_id": pd.Series(listed, dtype="int64"), "shelf": shelf, "weight": weight})
    return vocabulary, frame


@given(catalogues())
@settings(max_examples=80, deadline=None)
def test_attributes_are_those_of_the_items_table(catalogue):
    vocabulary, frame = catalogue
    names = ["shelf", "weight"]
    if not set(vocabulary.item_ids.tolist()) & set(frame.item_id):
        with pytest.raises(SchemaError, match="the items table has none of the .* items of the log: its ids look like"):
            ItemAttributes.from_frame(frame, names, vocabulary)
        return
    found = ItemAttributes.from_frame(frame, names, vocabulary)
    own = {row.item_id: row for row in frame.itertuples(index=False)}
    starts = [0]
    for name in names:
        values = {getattr(own[i], name) for i in vocabulary.item_ids.tolist() if i in own}
        labels = sorted(v for v in values if not pd.isna(v))
        codes = [starts[-1]]  # row 0, the unknown item, counts as missing
        for item in vocabulary.item_ids.tolist():
            value = getattr(own[item], name) if item in own else None
            codes.append(starts[-1] + (0 if pd.isna(value) else 1 + labels.index(value)))
        assert (found.single(name) + found.starts[names.index(name)]).tolist() == codes
        starts.append(starts[-1] + 1 + len(labels))
    assert (found.starts.tolist(), found.n_codes, found.names) == (starts, starts[-1], ("shelf", "weight"))


def test_an_unfit_items_table_is_refused():
    vocabulary = Vocabulary(np.array([1, 2]), np.ones(2))
    with pytest.raises(SchemaError, match="lacks column 'shelf'; found"):
        ItemAttributes.from_frame(pd.DataFrame({"item_id": [1]}), ["shelf"], vocabulary)
    with pytest.raises(SchemaError, match="has item 2 twice"):
        ItemAttributes.from_frame(pd.DataFrame({"item_id": [2, 1, 2], "shelf": 1}), ["shelf"], vocabulary)
    with pytest.raises(SchemaError, match="holds text, such as '1'; the ids here are integers"):
        ItemAttributes.from_frame(pd.DataFrame({"item_id": ["1"], "shelf": 1}), ["shelf"], vocabulary)
