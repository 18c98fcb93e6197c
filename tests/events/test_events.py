from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bseq_plugin import Events, SchemaError, instant_us

SECONDS = 1_600_000_000  # 2020-09-13


def frame(**columns):
    base = {
        "user_id": [1, 2, 1],
        "item_id": [10, 11, 12],
        "timestamp": pd.to_datetime([SECONDS, SECONDS + 1, SECONDS + 2], unit="s", utc=True),
    }
    return pd.DataFrame({**base, **columns})


def refused(log, *words, **kwargs):
    """The message of the SchemaError; every word has to stand in it, and the log must not change."""
    before = log.copy(deep=True)
    with pytest.raises(SchemaError) as caught:
        Events.from_frame(log, **kwargs)
    pd.testing.assert_frame_equal(log, before)
    for word in words:
        assert word in str(caught.value), (word, str(caught.value))
    assert caught.value.exit_code == 2


def test_a_missing_column_is_named_with_what_there_is():
    refused(frame().drop(columns="item_id"), "lack column 'item_id'", "'user_id', 'timestamp'", "columns={'item_id'")
    refused(frame(), "lack column 'household'", columns={"user_id": "household"})
    refused(frame(), "lack column 'price'", columns={"value": "price"})
    refused(frame(), "unknown names ['usr']", columns={"usr": "user_id"})


@pytest.mark.parametrize("name", ["user_id", "item_id", "timestamp"])
def test_a_missing_required_column_is_refused(name):
    refused(frame().drop(columns=name), f"lack column {name!r}")


def test_a_column_that_is_there_twice_is_refused():
    for name in ("user_id", "item_id", "timestamp"):
        refused(pd.concat([frame(), frame()[[name]]], axis=1), f"column {name!r} is there twice")
    twice = pd.concat([frame(value=[1.0, 2.0, 3.0]), frame(value=[1.0, 2.0, 3.0])[["value"]]], axis=1)
    refused(twice, "column 'value' is there twice")


@pytest.mark.parametrize(
    "column",
    [
        pd.Series([1, None, None], dtype="Int64"),
        pd.Series(["a", None, None]),
        pd.Series([1, None, np.nan], dtype=object),
    ],
)
@pytest.mark.parametrize("name", ["user_id", "item_id"])
def test_a_null_id_is_named_by_row(name, column):
    refused(frame(**{name: column}), f"column {name!r} has 2 nulls", "in row 1", "drop or fill")


def test_null_in_other_columns_is_named_too():
    refused(frame(timestamp=[pd.Timestamp(SECONDS, unit="s", tz="UTC"), pd.NaT, pd.NaT]), "'timestamp' has 2 nulls")
    refused(frame(event_type=["buy", None, "buy"]), "'event_type' has 1 nulls", "row 1")
    refused(frame(session_id=pd.array([1, 2, None], dtype="Int64")), "'session_id' has 1 nulls", "row 2")


def test_rows_count_from_the_top_whatever_the_index():
    refused(frame(user_id=[1, 2, -7]).set_axis([9, 8, 7]), "id -7 in row 2")


def test_a_negative_id_is_named_by_row():
    refused(frame(user_id=[1, -5, -6]), "column 'user_id' has id -5 in row 1", "ids are 0..2^63-1", "re-number")
    refused(frame(item_id=np.array([0, 3, -1], np.int8)), "column 'item_id' has id -1 in row 2")


@pytest.mark.parametrize("big", [2**63, 2**64 - 1])
def test_an_id_beyond_int64_is_refused_and_the_largest_is_kept(big):
    refused(frame(item_id=np.array([1, 2, big], np.uint64)), f"id {big} in row 2", "2^63-1")
    refused(frame(item_id=pd.Series([1, 2, big], dtype="UInt64")), f"id {big} in row 2", "2^63-1")
    refused(frame(item_id=pd.Series([1, 2, big], dtype=object)), f"id {big} in row 2", "2^63-1")
    kept = Events.from_frame(frame(item_id=np.array([1, 2, 2**63 - 1], np.uint64)))
    assert kept.frame.item_id.tolist() == [1, 2, 2**63 - 1]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([True, False, True], "bool"),
        ([1.0, 2.0, 3.0], "float"),
        (pd.Series([1, 2, 3], dtype="Float32"), "float"),
        (pd.Series([1, "a", 2], dtype=object), "mixed-integer"),
        (pd.Series([True, False, True], dtype=object), "boolean"),
        (pd.Series([b"a", b"b", b"c"], dtype=object), "binary"),
        (pd.Series([Decimal("1.5"), Decimal(2), Decimal(3)], dtype=object), "decimal"),
        (pd.Series([(1,), (2,), (3,)], dtype=object), "list"),
        (pd.to_datetime(["2020-01-01"] * 3, utc=True), "datetime"),
        (pd.Series([1.0, 2.0, 3.0]).astype("category"), "float"),
        (pd.Series([1, None, None], dtype=float), "float"),
    ],
)
@pytest.mark.parametrize("name", ["user_id", "item_id"])
def test_ids_are_integers_or_strings(name, values, kind):
    refused(frame(**{name: values}), f"column {name!r}", kind, "convert it")


def test_an_id_that_no_file_can_hold_is_refused_at_the_door():
    refused(frame(item_id=pd.Series(["a", "\ud800", "b"], dtype=object)), "column 'item_id'")


@pytest.mark.parametrize(
    "values",
    [
        np.array([3, 1, 2], np.int32),
        np.array([3, 1, 2], np.uint64),
        pd.Series([3, 1, 2], dtype="Int64"),
        pd.Series([3, 1, 2], dtype="int64[pyarrow]"),
        pd.Series([3, 1, 2], dtype=object),
        pd.Series([3, 1, 2]).astype("category"),
        pd.Series([3, 1, 2], dtype="Int64").astype("category"),
    ],
)
def test_every_kind_of_integer_becomes_int64(values):
    ids = Events.from_frame(frame(item_id=values)).frame.item_id
    assert (ids.dtype, ids.tolist()) == (np.dtype("int64"), [3, 1, 2])


@pytest.mark.parametrize(
    "values",
    [
        pd.Series(["b", "a", "b"], dtype=object),
        pd.Series(["b", "a", "b"], dtype="string"),
        pd.Series(["b", "a", "b"], dtype="string[pyarrow]"),
        pd.Series(["b", "a", "b"], dtype="category"),
    ],
)
def test_every_kind_of_string_is_kept(values):
    assert Events.from_frame(frame(item_id=values)).frame.item_id.tolist() == ["b", "a", "b"]


UNICODE = ["caf\u00e9", "cafe\u0301", "🥖🧑‍🍳", "x" * 10_000, "", " a ", "A", "a", "\u200ba", "日本"]


def test_string_ids_are_compared_byte_for_byte():
    """The two ways to write é are two ids, and so are cases, spaces and zero-width characters."""
    log = pd.DataFrame(
        {"user_id": UNICODE, "item_id": UNICODE[::-1], "timestamp": pd.to_datetime([SECONDS] * 10, unit="s", utc=True)}
    )
    events = Events.from_frame(log)
    assert events.frame.user_id.tolist() == UNICODE
    assert events.frame.item_id.tolist() == UNICODE[::-1]
    assert events.frame.item_id.nunique() == len(UNICODE)


def test_times_without_a_zone_are_refused_with_the_remedy():
    refused(frame(timestamp=pd.to_datetime(["2020-01-01"] * 3)), "row 0", "has no time zone", "time_zone='UTC'")


def test_mixed_zones_are_refused():
    berlin = timezone(timedelta(hours=1))
    zones = pd.Series([datetime(2020, 1, 1, tzinfo=UTC), datetime(2020, 1, 1, tzinfo=berlin)] * 2, dtype=object)[:3]
    refused(frame(timestamp=zones), "mixes time zones", "UTC+01:00", "utc=True")
    half = pd.Series([datetime(2020, 1, 1, tzinfo=UTC), datetime(2020, 1, 1), datetime(2020, 1, 2)], dtype=object)
    refused(frame(timestamp=half), "mixes naive and aware times")


@pytest.mark.parametrize("values", [[1.6e9] * 3, [True] * 3, [[1]] * 3])
def test_times_of_another_kind_are_refused(values):
    refused(frame(timestamp=values), "column 'timestamp' has type", "timestamp_unit", timestamp_unit="s")


def test_dates_without_a_time_and_iso_text_are_times_too():
    refused(frame(timestamp=pd.Series([date(2020, 1, 1)] * 3, dtype=object)), "has no time zone", timestamp_unit="s")
    events = Events.from_frame(
        frame(timestamp=["2020-09-13T14:26:40+02:00", "2020-09-13 12:26:40Z", "2020-09-13T12:26:40,0Z"])
    )
    assert events.frame.timestamp.tolist() == [SECONDS * 1_000_000] * 3


def test_integer_times_need_a_unit():
    refused(frame(timestamp=[SECONDS] * 3), "holds integers; say their unit")
    refused(frame(timestamp=[SECONDS] * 3), "timestamp_unit='ns'", timestamp_unit="ns")


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint32", "uint64", "Int64"])
@pytest.mark.parametrize(("unit", "factor"), [("s", 1), ("ms", 1000), ("us", 1_000_000)])
def test_integer_times_become_microseconds(unit, factor, dtype):
    values = [(SECONDS + i) * factor for i in range(3)]
    if "32" in dtype and unit != "s":
        values = [1_234_567] * 3  # 32 bits end in 1970: refused, but for the right reason
        refused(frame(timestamp=pd.Series(values, dtype=dtype)), "before 1990", timestamp_unit=unit)
        return
    events = Events.from_frame(frame(timestamp=pd.Series(values, dtype=dtype)), timestamp_unit=unit)
    assert events.frame.timestamp.tolist() == [(SECONDS + i) * 1_000_000 for i in range(3)]
    assert events.frame.timestamp.dtype == np.dtype("int64")


def test_a_wrong_unit_is_noticed_in_both_directions():
    refused(frame(timestamp=[SECONDS] * 3), "before 1990", "row 0", "'ms'", timestamp_unit="ms")
    refused(frame(timestamp=[SECONDS] * 3), "before 1990", timestamp_unit="us")
    refused(frame(timestamp=[SECONDS * 1000] * 3), "in the future", "row 0", "'s'", timestamp_unit="s")
    refused(frame(timestamp=[SECONDS * 1_000_000] * 3), "in the future", timestamp_unit="s")
    refused(frame(timestamp=[SECONDS * 10**9] * 3), "in the future", timestamp_unit="us")
    refused(frame(timestamp=[SECONDS, 2**63 - 1, 0]), "before 1990", "row 2", timestamp_unit="s")
    refused(frame(timestamp=[SECONDS, 2**63 - 1, SECONDS]), "in the future", "row 1", timestamp_unit="s")
    refused(frame(timestamp=[SECONDS, -(2**63), SECONDS]), "before 1990", "row 1", timestamp_unit="s")


def test_future_times_are_refused_and_a_day_of_clock_skew_is_not():
    now = pd.Timestamp.now(tz="UTC")
    future = frame(timestamp=[now, now + pd.Timedelta(days=2), now])
    refused(future, "row 1", "lies in the future", "Drop these rows")
    assert len(Events.from_frame(frame(timestamp=[now, now + pd.Timedelta(hours=12), now]))) == 3


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_datetimes_of_any_resolution_and_zone_are_the_same_instant(unit):
    times = pd.to_datetime([SECONDS] * 3, unit="s", utc=True).as_unit(unit).tz_convert("America/New_York")
    assert Events.from_frame(frame(timestamp=times)).frame.timestamp.tolist() == [SECONDS * 1_000_000] * 3


def test_an_hour_that_comes_twice_keeps_its_two_instants():
    """01:30 on the night the clocks go back: the zone tells the two apart."""
    fold = pd.to_datetime(["2021-11-07T05:30Z", "2021-11-07T06:30Z"]).tz_convert("America/New_York")
    times = Events.from_frame(frame(timestamp=[fold[0], fold[1], fold[1]])).frame.timestamp
    assert (times[1] - times[0], times[2] - times[1]) == (3_600_000_000, 0)


def test_an_empty_log_is_refused():
    refused(frame().iloc[:0], "the log is empty")
    with pytest.raises(SchemaError, match="the log is empty"):
        Events.in_order(np.array([], np.int64), np.array([], np.int64))


def test_a_value_that_is_no_number_is_refused():
    refused(frame(value=["1", "2", "3"]), "column 'value' (value)", "give numbers")


def test_what_is_kept_and_what_is_not():
    log = frame(event_type=["b", "a", "b"], session_id=["s", "s", "t"], value=[1, 2, 3], colour=["r", "g", "b"])
    events = Events.from_frame(log)
    assert list(events.frame) == ["user_id", "item_id", "timestamp", "event_type", "session_id", "value"]
    assert events.frame.value.dtype == np.dtype("float64")


def test_columns_may_have_other_names():
    log = frame(event_type=["b", "a", "b"]).rename(columns={"user_id": "household", "timestamp": "t"})
    events = Events.from_frame(log, columns={"user_id": "household", "timestamp": "t"})
    pd.testing.assert_frame_equal(events.frame, Events.from_frame(frame(event_type=["b", "a", "b"])).frame)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=20))
@settings(max_examples=60, deadline=None)
def test_rows_are_neither_dropped_nor_reordered_nor_is_the_input_changed(rows):
    """Equal rows are separate events; the order of equal times is that of the input."""
    log = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    log["timestamp"] = pd.to_datetime(log.timestamp + SECONDS, unit="s", utc=True)
    before = log.copy(deep=True)
    events = Events.from_frame(log)
    pd.testing.assert_frame_equal(log, before)
    found = zip(events.frame.user_id, events.frame.item_id, events.frame.timestamp, strict=True)
    assert list(found) == [(u, i, (t + SECONDS) * 1_000_000) for u, i, t in rows]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=20), st.integers(0, 9), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_before_and_between_are_half_open(times, start, end):
    log = pd.DataFrame({"user_id": 1, "item_id": range(len(times)), "timestamp": [SECONDS + t for t in times]})
    events = Events.from_frame(log, timestamp_unit="s")
    at = [(SECONDS + t) * 1_000_000 for t in (start, end)]
    assert events.before(at[1]).frame.item_id.tolist() == [i for i, t in enumerate(times) if t < end]
    assert events.between(*at).frame.item_id.tolist() == [i for i, t in enumerate(times) if start <= t < end]


@pytest.mark.parametrize("value", ["2020-09-13T12:26:40+00:00", "2020-09-13T14:26:40+02:00"])
def test_instants_are_microseconds_of_aware_times(value):
    expected = SECONDS * 1_000_000
    assert instant_us(value) == instant_us(pd.Timestamp(value)) == instant_us(datetime.fromisoformat(value)) == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("2020-09-13", "has no time zone"),
        (datetime(2020, 1, 1), "has no time zone"),
        ("yesterday-ish", "is not a time"),
        (None, "is missing"),
        (object(), "is not a time"),
    ],
)
def test_instants_without_a_zone_are_refused(value, message):
    with pytest.raises(SchemaError, match=f"until.*{message}"):
        instant_us(value, "until")
