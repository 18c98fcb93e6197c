"""Sources in memory, what is left out of a log, and the summary of it."""

import json

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bseq_plugin import Events, Run, SchemaError, UsageError, read_events, train
from bseq_plugin.readers.build_sequences import build_sequences

SECONDS = 1_600_000_000
LOG = pd.DataFrame(
    {
        "user_id": ["ann", "bob", "ann"],
        "item_id": [3, 1, 2],
        "timestamp": pd.to_datetime([SECONDS, SECONDS + 1, SECONDS + 2], unit="s", utc=True),
        "event_type": ["buy", "view", "buy"],
    }
)


class Stream:
    """What polars and others are to us: something that gives a stream of Arrow."""

    def __init__(self, table):
        self.table = table

    def __arrow_c_stream__(self, requested_schema=None):
        return self.table.__arrow_c_stream__(requested_schema)


def arrow():
    return pa.Table.from_pandas(LOG, preserve_index=False)


SOURCES = {
    "frame": lambda: LOG, "table": arrow, "stream": lambda: Stream(arrow()),
    "reader": lambda: pa.RecordBatchReader.from_batches(arrow().schema, arrow().to_batches(max_chunksize=1)),
    "duckdb": lambda: duckdb.connect().from_arrow(arrow()),
    "views": lambda: arrow().set_column(0, "user_id", arrow()["user_id"].cast(pa.string_view())),
    "categories": lambda: arrow().set_column(0, "user_id", arrow()["user_id"].dictionary_encode()),
}  # fmt: skip


@pytest.mark.parametrize("name", SOURCES)
def test_whatever_gives_arrow_is_a_log(name, tmp_path):
    expected = Events.from_frame(LOG)
    pd.testing.assert_frame_equal(read_events(SOURCES[name]()).frame, expected.frame)
    if name != "duckdb":  # a relation of another connection can't be read while ours runs a query
        found = build_sequences(SOURCES[name](), tmp_path / "out", partitions=2)
        assert (found.n_users, found.n_events) == (2, 3)
    where = {"where": "event_type = 'buy' AND item_id > 2", "columns": {"value": "item_id"}}
    assert read_events(SOURCES[name](), **where).frame.item_id.tolist() == [3]


def test_columns_that_differ_by_case_stay_apart():
    table = pa.table({"User_ID": [9], "user_id": [1], "item_id": [2], "timestamp": [SECONDS]})
    assert read_events(table, timestamp_unit="s").frame.user_id.tolist() == [1]
    twice = pa.Table.from_arrays([pa.array([1])] * 4, names=["user_id", "user_id", "item_id", "timestamp"])
    with pytest.raises(SchemaError, match="column 'user_id' is there twice"):
        read_events(twice, timestamp_unit="s")


logs = st.lists(
    st.tuples(st.one_of(st.none(), st.integers(0, 4)), st.one_of(st.none(), st.integers(0, 4)), st.integers(0, 3)),
    min_size=1,
)


@given(logs, st.booleans(), st.one_of(st.none(), st.integers(1, 3)), st.one_of(st.none(), st.integers(0, 4)))
@settings(max_examples=80, deadline=None)
def test_what_is_left_out_and_the_summary_of_it(rows, single, users, least):
    """A loop over rows."""
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"]).astype(
        {"user_id": "Int64", "item_id": "Int64"}
    )
    frame["timestamp"] += SECONDS
    how = {"timestamp_unit": "s", "on_null": "drop", "on_duplicate": "drop" if single else "keep", "limit_users": users}
    how |= {} if least is None else {"where": f"item_id >= {least}"}
    kept = [row for row in rows if least is None or (row[1] is not None and row[1] >= least)]
    left = {} if least is None else {"where": len(rows) - len(kept)}
    whole = [row for row in kept if None not in row]
    left["on_null"] = len(kept) - len(whole)
    if single:
        left["on_duplicate"] = len(whole) - len(set(whole))
        whole = list(dict.fromkeys(whole))
    if not whole:
        with pytest.raises(SchemaError, match="the log is empty"):
            read_events(frame, **how)
        return
    found = read_events(frame, **how)
    theirs = set(found.frame.user_id)
    assert len(theirs) == min(users or 99, len({row[0] for row in whole}))
    expected = [row for row in whole if row[0] in theirs]
    assert [(u, i, t // 10**6 - SECONDS) for u, i, t in found.frame.itertuples(index=False)] == expected
    summary, lengths = found.summary, [sum(row[0] == user for row in expected) for user in theirs]
    assert (summary.rows_read, summary.left_out, summary.events) == (len(rows), left, len(expected))
    assert (summary.users, summary.items) == (len(theirs), len({row[1] for row in expected}))
    assert summary.events_per_user == (np.median(lengths), np.percentile(lengths, 95))
    assert read_events(found, **{**how, "on_null": "error", "timestamp_unit": None}).frame.equals(found.frame)


def test_options_that_are_none():
    for how, told in (
        ({"time_zone": "Mars/Olympus"}, "no such zone"), ({"on_null": "skip"}, "use error or drop"),
        ({"on_duplicate": "x"}, "use keep or drop"), ({"limit_users": 0}, "give 1 or more"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=told):
            read_events(LOG, **how)


def test_a_shop_in_one_command_and_what_run_json_keeps(tmp_path, bseq):
    """The first quarter of an hour with somebody's log."""
    random = np.random.default_rng(0)
    n = 400
    days = pd.Timestamp("2010-01-05 09:00") + pd.to_timedelta(random.integers(0, 300, n), unit="D")
    shop = pd.DataFrame(
        {
            "Invoice": [f"{'C' if q < 0 else ''}{489_434 + k}" for k, q in enumerate(random.choice([3, 3, 3, -3], n))],
            "StockCode": [f"{number}{'P' * (number % 2)}" for number in random.integers(21_000, 21_080, n)],
            "Quantity": 0,
            "InvoiceDate": days.strftime("%Y-%m-%d %H:%M:%S"),
            "Customer ID": pd.array(random.choice([13085, 16321, 17000, 18000, -1], n), "Int64"),
        }
    )
    shop["Quantity"] = np.where(shop.Invoice.str.startswith("C"), -3, 3)
    shop.loc[shop["Customer ID"] < 0, "Customer ID"] = pd.NA
    shop.to_parquet(tmp_path / "retail.parquet")
    command = ["train", tmp_path / "retail.parquet", "--out", tmp_path / "run", "--column", "user_id=Customer ID"]
    command += ["--column", "item_id=StockCode", "--column", "timestamp=InvoiceDate", "--session-id", "Invoice"]
    command += ["--time-zone", "Europe/London", "--on-null", "drop", "--where", "Quantity > 0"]
    quick = ["encoder=mean", "vectors.dim=8", "training.epochs=1"]
    code, _, err = bseq(*command, *[word for one in quick for word in ("--set", one)])
    assert code == 0, err
    good = shop[(shop.Quantity > 0) & shop["Customer ID"].notna()]
    told = json.loads((tmp_path / "run" / "run.json").read_text())["log"]
    assert (told["rows_read"], told["events"], told["users"]) == (n, len(good), good["Customer ID"].nunique())
    assert told["left_out"] == {
        "where": int((shop.Quantity < 0).sum()),
        "on_null": int((shop.Quantity > 0).sum()) - len(good),
    }
    first = pd.Timestamp(good.InvoiceDate.min(), tz="Europe/London")
    assert told["first_us"] == first.value // 1000
    assert f"read {n} rows, left out" in err


def test_a_run_keeps_what_was_read_of_partitions_too(tmp_path, tiny_source, tiny_recipe):
    parts = build_sequences(str(tiny_source), tmp_path / "parts", limit_users=40)
    run = train(parts, tiny_recipe, tmp_path / "run", progress=False)
    assert Run(run.path).info["log"] == parts.summary
    assert parts.summary["users"] == 40
