"""Queries, filters and instants: ids of any container mean the same, and what had not arrived is not read."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bseq_plugin as bseq
from bseq_plugin import Diversity, Filters, SchemaError, Sequences

HOUR = 3_600_000_000
START = 1_600_000_000_000_000


def test_queries_and_filters_refuse_ids_of_another_kind(tiny_store):
    retriever = bseq.Retriever.open(tiny_store)
    user, item = retriever.histories.user_ids[0], int(retriever.model.vocabulary.item_ids[0])
    expected = retriever.retrieve([int(user)], k=5)
    for users in (np.array([user]), pd.Series([user]), pd.array([user], "Int64"), iter([int(user)])):
        pd.testing.assert_frame_equal(retriever.retrieve(users, k=5), expected)
    for users in ([float(user)], [str(user)], np.array([user], float)):
        with pytest.raises(SchemaError, match="history holds"):
            retriever.retrieve(users, k=5)
    wrong = [
        Filters(allow=[str(item)]), Filters(deny=[float(item)]), Filters(exclude={str(user): [item]}),
        Filters(exclude={int(user): [str(item)]}), Filters(categories={str(item): "a"}, max_per_category=1),
    ]  # fmt: skip
    for filters in wrong:
        with pytest.raises(SchemaError, match="holds"):
            retriever.retrieve([user], filters=filters)
    with pytest.raises(SchemaError, match="holds text"):
        retriever.retrieve([user], diversity=Diversity(1.0, {str(item): "a"}))
    with pytest.raises(bseq.UsageError, match=f"the category of item {item} is"):
        retriever.retrieve([user], filters=Filters(categories={item: ["a"]}, max_per_category=1))
    with pytest.raises(bseq.UsageError, match="categories is DataFrame"):
        retriever.retrieve([user], filters=Filters(categories=pd.DataFrame({"a": [1]}), max_per_category=1))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(0, 9)), min_size=1), st.integers(0, 12))
@settings(max_examples=60, deadline=None)
def test_what_is_known_at_an_instant(rows, at):
    """A naive loop over all events says what a history holds."""
    order = sorted(range(len(rows)), key=lambda n: (rows[n][0], rows[n][1]))
    users, times, delays = (np.array([rows[n][place] for n in order]) for place in range(3))
    ids, starts = np.unique(users, return_index=True)
    log = Sequences(
        ids, np.append(starts, len(users)), np.arange(1, len(users) + 1), START + times * HOUR,
        created=START + (times + delays) * HOUR,
    )  # fmt: skip
    known = log.known_at(START + at * HOUR)
    expected = [n + 1 for n in range(len(users)) if times[n] < at and times[n] + delays[n] <= at]
    assert known.items.tolist() == expected
    assert known.user_ids.tolist() == ids.tolist()


def test_retrieve_as_of_an_instant_reads_no_event_that_arrived_later(tiny_store):
    retriever = bseq.Retriever.open(tiny_store)
    items, at = (
        retriever.model.vocabulary.item_ids[:3],
        pd.Timestamp(retriever.manifest["watermark_us"], unit="us", tz="UTC"),
    )
    day = pd.Timedelta(days=1)
    events = pd.DataFrame({"user_id": 1, "item_id": items, "timestamp": [at + day, at + 2 * day, at + 3 * day]})
    late = events.assign(created_timestamp=[at + day, at + 9 * day, at + 3 * day])
    asked = {"k": 9, "exclude": "none", "at": at + 4 * day}
    pd.testing.assert_frame_equal(retriever.retrieve(late, **asked), retriever.retrieve(events.iloc[[0, 2]], **asked))
    assert not retriever.retrieve(events, **asked).equals(retriever.retrieve(late, **asked))
