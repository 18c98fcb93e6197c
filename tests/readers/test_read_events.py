import types

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bseq_plugin import Events, PluginError, SchemaError, UsageError, hookimpl, plugin_manager, read_events

SECONDS = 1_600_000_000


@pytest.fixture
def log():
    return pd.DataFrame(
        {
            "user_id": ["ann", "bob", "ann"],
            "item_id": [3, 1, 2],
            "timestamp": pd.to_datetime([SECONDS, SECONDS + 1, SECONDS + 2], unit="s", utc=True),
            "event_type": ["buy", "view", "buy"],
            "value": [1.5, 2.0, 0.0],
        }
    )


def same(found, expected):
    pd.testing.assert_frame_equal(found.frame, expected.frame)


def test_a_frame_and_events_themselves(log):
    events = read_events(log)
    same(events, Events.from_frame(log))
    assert read_events(events) is events


@pytest.mark.parametrize("as_type", [str, lambda p: p])
@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".tsv"])
def test_every_kind_of_table_gives_the_same_events(log, tmp_path, suffix, as_type):
    path = tmp_path / f"log{suffix}"
    if suffix == ".parquet":
        log.to_parquet(path)
    else:
        log.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
    same(read_events(as_type(path)), Events.from_frame(log))


def test_globs_are_read_in_the_order_of_their_names(log, tmp_path):
    for number, part in enumerate((log.iloc[:1], log.iloc[1:2], log.iloc[2:])):
        (tmp_path / f"day={number}").mkdir()
        part.to_parquet(tmp_path / f"day={number}" / "part.parquet")
    same(read_events(tmp_path / "*" / "part.parquet"), Events.from_frame(log))
    same(read_events(f"{tmp_path}/**/*.parquet"), Events.from_frame(log))


def test_a_file_whose_name_looks_like_a_pattern_is_read(log, tmp_path):
    log.to_parquet(tmp_path / "log[1].parquet")
    same(read_events(tmp_path / "log[1].parquet"), Events.from_frame(log))


def test_other_column_names_and_integer_times(log, tmp_path):
    other = log.assign(timestamp=[SECONDS, SECONDS + 1, SECONDS + 2]).rename(columns={"timestamp": "t", "user_id": "u"})
    other.to_csv(tmp_path / "log.csv", index=False)
    found = read_events(tmp_path / "log.csv", columns={"timestamp": "t", "user_id": "u"}, timestamp_unit="s")
    same(found, Events.from_frame(log))


@pytest.mark.parametrize("offset", ["Z", "+00:00", "+0000"])
def test_iso_times_of_a_csv(tmp_path, offset):
    (tmp_path / "log.csv").write_text(f"user_id,item_id,timestamp\n1,2,2020-09-13T12:26:40{offset}\n")
    assert read_events(tmp_path / "log.csv").frame.timestamp.tolist() == [SECONDS * 1_000_000]


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (["2020-09-13T12:26:40Z", "2020-09-13T12:26:40"], "row 1 .*has no time zone; write an offset"),
        (["2020-09-13T12:26:40Z", "2020-09-13"], "row 1 .*'2020-09-13'.* has no time zone"),
        (["2020-09-13T12:26:40Z", "noon"], "row 1 .*'noon'. is not an ISO 8601 time"),
        (["2020-09-13T12:26:40Z", ""], "'timestamp' has 1 nulls, the first in row 1"),
    ],
)
def test_times_of_a_csv_that_can_not_be_told(tmp_path, times, message):
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n" + "".join(f"1,2,{t}\n" for t in times))
    with pytest.raises(SchemaError, match=message):
        read_events(tmp_path / "log.csv")


def test_ids_of_a_long_csv_are_of_one_kind(tmp_path):
    """pandas reads long files in pieces; an id that is no number in the last one makes all of them text."""
    lines = [f"1,{n % 900_000 + 10**6},{SECONDS}" for n in range(400_000)] + [f"1,A,{SECONDS}"]
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(lines) + "\n")
    found = read_events(tmp_path / "log.csv", timestamp_unit="s").frame.item_id
    assert (found.iloc[0], found.iloc[-1], len(found)) == ("1000000", "A", 400_001)


def test_a_recbole_file(tmp_path):
    path = tmp_path / "ml.inter"
    path.write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        f"1\tb\t5\t{SECONDS}\n2\ta\t3\t{SECONDS + 1}.25\n1\ta\t4\t{SECONDS + 2}\n"
    )
    found = read_events(path).frame
    assert found.user_id.tolist() == [1, 2, 1]
    assert found.item_id.tolist() == ["b", "a", "a"]
    assert found.timestamp.tolist() == [SECONDS * 10**6, SECONDS * 10**6 + 1_250_000, (SECONDS + 2) * 10**6]
    path.write_text(f"user_id:token\titem_id:token\ttimestamp:float\n1\t2\t{SECONDS}\n")
    assert read_events(path).frame.timestamp.tolist() == [SECONDS * 10**6]


def test_a_recbole_file_with_missing_values_or_columns(tmp_path):
    path = tmp_path / "ml.inter"
    for missing in ("1\t\t", "1\t2\t"):
        path.write_text(
            f"user_id:token\titem_id:token\ttimestamp:float\n1\tb\t{SECONDS}\n{missing}{SECONDS}\n"[
                : -len(str(SECONDS)) - 1 if missing == "1\t2\t" else None
            ]
        )
        with pytest.raises(SchemaError, match="'item_id' has 1 nulls, the first in row 1|'timestamp' has 1 nulls"):
            read_events(path)
    path.write_text("user_id:token\titem_id:token\n1\t2\n")
    with pytest.raises(SchemaError, match="lack column 'timestamp'"):
        read_events(path)


words = st.text(st.characters(exclude_categories=["Cs", "Z", "C"]), min_size=1, max_size=5)


@given(
    st.one_of(
        st.lists(st.lists(st.integers(0, 10**6).map(str), min_size=2, max_size=5), min_size=1, max_size=5),
        st.lists(st.lists(words, min_size=2, max_size=5), min_size=1, max_size=5),
    )
)
@settings(max_examples=60, deadline=None)
def test_sequence_text_is_one_user_a_line(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("text") / "log.txt"
    path.write_text("\n\n".join(" ".join(line) for line in lines) + "\n", encoding="utf-8")
    found = read_events(path)
    users, items = [[line[0]] * (len(line) - 1) for line in lines], [line[1:] for line in lines]
    assert found.frame.user_id.tolist() == numbers([u for row in users for u in row])
    assert found.frame.item_id.tolist() == numbers([i for row in items for i in row])
    assert not found.has_times


def numbers(texts):
    """Ids are integers if all of the column are."""
    return [int(t) for t in texts] if all(t.isascii() and t.isdecimal() and t == str(int(t)) for t in texts) else texts


def test_zeros_ahead_make_another_id(tmp_path):
    (tmp_path / "log.txt").write_text("1 007 7\n")
    assert read_events(tmp_path / "log.txt").frame.item_id.tolist() == ["007", "7"]
    (tmp_path / "log.inter").write_text(
        f"user_id:token\titem_id:token\ttimestamp:float\n1\t007\t{SECONDS}\n2\t7\t{SECONDS}\n2\t7.0\t{SECONDS}\n"
    )
    found = read_events(tmp_path / "log.inter").frame
    assert (found.user_id.tolist(), found.item_id.tolist()) == ([1, 2, 2], ["007", "7", "7.0"])


def test_numbers_beyond_64_bits_are_text(tmp_path):
    (tmp_path / "log.txt").write_text(f"1 {2**63} 5\n")
    assert read_events(tmp_path / "log.txt").frame.item_id.tolist() == [str(2**63), "5"]


def test_sequence_text_that_is_no_sequence(tmp_path):
    path = tmp_path / "log.txt"
    for content, message in (
        (b"1 2 3\n4\n", "log.txt, line 2: user '4' has no items"),
        (b"\n \n", "is empty"),
        (b"1 \xff\xfe\n", "log.txt"),
    ):
        path.write_bytes(content)
        with pytest.raises(SchemaError, match=message):
            read_events(path)


@pytest.mark.parametrize("name", ["log.parquet", "log.csv", "log.tsv", "log.inter"])
@pytest.mark.parametrize(
    "content",
    [b"", b"\x00\xff\xfe garbage \x80", b"PAR1 not really PAR1", b'a,b\n"open\n1,2,3,4\n', b"a\tb\n1\t2\t3\t4\n1\n"],
)
def test_a_file_that_is_something_else_is_a_schema_error(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SchemaError):
        read_events(tmp_path / name)


def test_a_truncated_parquet_file_is_a_schema_error(log, tmp_path):
    log.to_parquet(tmp_path / "log.parquet")
    whole = (tmp_path / "log.parquet").read_bytes()
    for length in (len(whole) - 1, len(whole) // 2):
        (tmp_path / "log.parquet").write_bytes(whole[:length])
        with pytest.raises(SchemaError, match="log.parquet can't be read"):
            read_events(tmp_path / "log.parquet")


def test_sources_that_are_not_there_or_not_known(tmp_path):
    with pytest.raises(UsageError, match="there is no file"):
        read_events(tmp_path / "gone.parquet")
    with pytest.raises(UsageError, match="there is no file"):
        read_events(f"{tmp_path}/*.csv")
    for source in (tmp_path / "log.xlsx", "log", 7, None, ["a.csv"]):
        with pytest.raises(UsageError, match="no reader recognises .*give a DataFrame"):
            read_events(source)


@pytest.mark.parametrize("name", ["folder.csv", "folder.inter", "folder.txt"])
def test_a_folder_with_the_name_of_a_file_is_refused(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(UsageError, match=name):
        read_events(tmp_path / name)


@pytest.fixture
def reader():
    """A function that registers a reader plugin for the time of a test."""
    manager = plugin_manager()
    registered = []

    def register(function):
        def bseq_read_events(source, columns, timestamp_unit):
            return function(source, columns, timestamp_unit)

        module = types.SimpleNamespace(bseq_read_events=hookimpl(bseq_read_events))
        manager._pm.register(module, name=f"test-reader-{len(registered)}")
        registered.append(module)

    yield register
    for module in registered:
        manager._pm.unregister(module)


def test_a_plugin_is_asked_before_the_built_in_readers(reader, log, tmp_path):
    log.to_parquet(tmp_path / "log.parquet")
    other = Events.in_order(np.array([1]), np.array([2]))
    asked = []

    def read(source, columns, timestamp_unit):
        asked.append((source, columns, timestamp_unit))
        return other if str(source).startswith("kafka:") or str(source).endswith(".parquet") else None

    reader(read)
    assert read_events("kafka:clicks", columns={"user_id": "u"}, timestamp_unit="s") is other
    assert asked == [("kafka:clicks", {"user_id": "u"}, "s")]
    assert read_events(tmp_path / "log.parquet") is other  # even for a source that the built-in ones know
    same(read_events(log), Events.from_frame(log))  # None: the next one is asked


def test_a_plugin_that_gives_something_else_is_refused(reader):
    reader(lambda source, columns, unit: [1, 2, 3])
    with pytest.raises(PluginError, match="a reader plugin gave list for 'x'; it has to give Events"):
        read_events("x")
