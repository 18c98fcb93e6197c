import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bseq_plugin import Events, SchemaError, Vocabulary

integer_ids = st.integers(0, 2**63 - 1)
string_ids = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)


def log(items, event_types=None):
    frame = pd.DataFrame({"user_id": 1, "item_id": items, "timestamp": [1_600_000_000] * len(items)})
    if event_types is not None:
        frame["event_type"] = event_types
    return Events.from_frame(frame, timestamp_unit="s")


def expected_rows(items, counts, at_least):
    kept = sorted(item for item, n in counts.items() if n >= at_least)
    return [kept.index(item) + 1 if item in kept else 0 for item in items]


@given(st.one_of(st.lists(integer_ids, min_size=1), st.lists(string_ids, min_size=1)), st.integers(1, 3))
@settings(max_examples=80, deadline=None)
def test_rows_are_places_among_the_ascending_ids_and_rare_items_have_row_0(ids, at_least):
    ids = ids + ids[:3] + ids[:2]
    counts = {i: ids.count(i) for i in ids}
    if max(counts.values()) < at_least:
        with pytest.raises(SchemaError, match="items.min_count = 3"):
            Vocabulary.from_events(log(ids), at_least)
        return
    vocabulary = Vocabulary.from_events(log(ids), at_least)
    assert vocabulary.item_rows(np.array(ids, dtype=object if isinstance(ids[0], str) else np.int64)).tolist() == (
        expected_rows(ids, counts, at_least)
    )
    assert vocabulary.item_counts.tolist() == [counts[i] for i in vocabulary.item_ids]
    assert sorted(vocabulary.item_ids) == list(vocabulary.item_ids)


@given(st.one_of(st.sets(integer_ids, min_size=1), st.sets(string_ids, min_size=1)), st.sets(string_ids, max_size=4))
@settings(max_examples=60, deadline=None)
def test_saved_and_loaded_it_is_the_same(tmp_path_factory, ids, event_types):
    path = tmp_path_factory.mktemp("vocabulary") / "vocabulary.parquet"
    strings = isinstance(next(iter(ids)), str)
    item_ids = np.array(sorted(ids), dtype=object if strings else np.int64)
    before = Vocabulary(item_ids, np.arange(len(ids)), tuple(sorted(event_types)))
    before.save(path)
    after = Vocabulary.load(path)
    assert after.item_ids.dtype == item_ids.dtype
    assert after.item_ids.tolist() == item_ids.tolist()
    assert after.item_counts.tolist() == before.item_counts.tolist()
    assert after.event_types == before.event_types
    assert after.item_rows(item_ids).tolist() == list(range(1, len(ids) + 1))


def test_unknown_ids_have_row_0_and_no_item_has():
    vocabulary = Vocabulary.from_events(log([30, 10, 20, 10], ["view", "buy", "view", "buy"]))
    assert vocabulary.item_rows([10, 20, 30, 40, 0, -1]).tolist() == [1, 2, 3, 0, 0, 0]
    assert vocabulary.event_type_rows(["buy", "view", "gift", ""]).tolist() == [1, 2, 0, 0]
    assert vocabulary.n_items == 3
    assert vocabulary.item_rows(np.array([], np.int64)).tolist() == []


def test_integers_and_strings_do_not_mix():
    with pytest.raises(SchemaError, match="holds text, such as '10'; the ids here are integers, for example 10$"):
        Vocabulary.from_events(log([10, 20])).item_rows(["10"])
    with pytest.raises(SchemaError, match="holds integers, such as 10; the ids here are text, for example '10'$"):
        Vocabulary.from_events(log(["10", "20"])).item_rows([10])


@given(st.lists(st.integers(0, 5), max_size=30))
def test_recounted_counts_rows(rows):
    vocabulary = Vocabulary(np.arange(5) * 2, np.full(5, 99))
    counted = vocabulary.recounted(np.array(rows, np.int64))
    assert counted.item_counts.tolist() == [rows.count(row) for row in range(1, 6)]
    assert counted.item_ids.tolist() == vocabulary.item_ids.tolist()


@pytest.mark.parametrize("ids", [[3, 7, 20], [5, 6, 7, 8], [3, 20, 7, 5]])
def test_large_vocabularies_find_the_same_rows(monkeypatch, ids):
    """Without a hash table; a delta version has its new items behind, out of order."""
    vocabulary = Vocabulary(np.array(ids), np.ones(len(ids), np.int64))
    asked = np.arange(25)
    wanted = [ids.index(item) + 1 if item in ids else 0 for item in asked]
    assert vocabulary.item_rows(asked).tolist() == wanted
    monkeypatch.setattr("bseq_plugin.events.vocabulary.SEARCHED", 1)
    assert Vocabulary(np.array(ids), vocabulary.item_counts).item_rows(asked).tolist() == wanted
