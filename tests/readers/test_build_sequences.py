"""Logs larger than memory: what DuckDB builds is what the in-memory road builds, whatever the partitions."""

import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from bseq_plugin import BseqError, SchemaError, Sequences, UsageError, Vocabulary, read_events
from bseq_plugin.data.partitions import PartitionedSequences
from bseq_plugin.readers.build_sequences import build_sequences
from bseq_plugin.readers.seal import seal


def histories(sequences, vocabulary):
    """User -> columns of the history, as plain values."""
    names = np.array(["", *vocabulary.event_types], dtype=object)
    found = {}
    for place, user in enumerate(sequences.user_ids.tolist()):
        own = slice(sequences.offsets[place], sequences.offsets[place + 1])
        times = None if sequences.timestamps is None else sequences.timestamps[own].tolist()
        types = None if sequences.event_types is None else names[sequences.event_types[own]].tolist()
        sessions = None if sequences.session_ids is None else pd.factorize(sequences.session_ids[own])[0].tolist()
        created = None if sequences.created is None else sequences.created[own].tolist()
        found[user] = (vocabulary.item_ids[sequences.items[own] - 1].tolist(), times, types, sessions, created)
    return found


def read_all(found):
    return found.read_all(found.vocabulary)


def in_memory(source, **how):
    """The oracle: the road that holds everything."""
    events = read_events(str(source), **how)
    vocabulary = Vocabulary.from_events(events)
    return histories(Sequences.from_events(events, vocabulary), vocabulary), vocabulary


@pytest.fixture
def log():
    """Many equal times, so that the order of the log matters; strings and numbers; out of order."""
    random = np.random.default_rng(1)
    n = 3_000
    return pd.DataFrame(
        {
            "user_id": random.integers(0, 200, n),
            "item_id": [f"i{number:03d}" for number in random.integers(0, 90, n)],
            "timestamp": pd.to_datetime(1_600_000_000 + random.integers(0, 40, n) * 3600, unit="s", utc=True),
            "event_type": random.choice(["buy", "view", "cart"], n),
            "session_id": random.integers(0, 9, n),
            "created_timestamp": pd.to_datetime(1_600_200_000 + random.integers(0, 999, n), unit="s", utc=True),
        }
    )


@pytest.mark.parametrize("partitions", [1, 7, None, 300])  # 300 for 200 users: some are empty
def test_it_is_what_the_road_in_memory_builds(log, tmp_path, partitions):
    log.iloc[:1000].to_parquet(tmp_path / "a.parquet", row_group_size=100)
    log.iloc[1000:].to_parquet(tmp_path / "b.parquet", row_group_size=64)
    found = build_sequences(str(tmp_path / "*.parquet"), tmp_path / "out", partitions=partitions, memory_mb=400)
    expected, vocabulary = in_memory(tmp_path / "*.parquet")
    assert histories(read_all(found), found.vocabulary) == expected
    assert found.vocabulary.item_ids.tolist() == vocabulary.item_ids.tolist()
    assert found.vocabulary.item_counts.tolist() == vocabulary.item_counts.tolist()
    assert found.event_types == ["buy", "cart", "view"]
    assert (found.n_users, found.n_events) == (log.user_id.nunique(), len(log))
    assert found.last_us == int(log.timestamp.max().value // 1000)
    assert len(found.partitions) == (partitions or 8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "b.parquet", "out"]
    assert PartitionedSequences.open(tmp_path / "out") == found


def test_csv_with_other_names_integer_times_and_ids_that_look_like_numbers(log, tmp_path):
    log = log.drop(columns=["event_type", "session_id", "created_timestamp"])
    log["item_id"] = log.item_id.str[1:]  # 007 stays 007
    log["t"] = log.pop("timestamp").dt.as_unit("s").astype("int64")
    log.rename(columns={"user_id": "who"}).to_csv(tmp_path / "log.csv", index=False)
    how = {"columns": {"user_id": "who", "timestamp": "t"}, "timestamp_unit": "s"}
    found = build_sequences(str(tmp_path / "log.csv"), tmp_path / "out", **how)
    expected, vocabulary = in_memory(tmp_path / "log.csv", **how)
    assert histories(read_all(found), found.vocabulary) == expected
    assert found.vocabulary.item_ids.tolist() == vocabulary.item_ids.tolist()
    assert found.vocabulary.item_ids[0].startswith("0")


def test_times_of_a_text_file_need_an_offset(log, tmp_path):
    for name in ("timestamp", "created_timestamp"):
        log[name] = log[name].dt.strftime("%Y-%m-%dT%H:%M:%S+00:00")
    log.to_csv(tmp_path / "log.csv", index=False)
    found = build_sequences(str(tmp_path / "log.csv"), tmp_path / "out")
    assert histories(read_all(found), found.vocabulary) == in_memory(tmp_path / "log.csv")[0]
    log["timestamp"] = log.timestamp.str[:19]
    log.to_csv(tmp_path / "log.csv", index=False)
    with pytest.raises(SchemaError, match=r"row 0 of .*log.csv .*has no time zone; write an offset"):
        build_sequences(str(tmp_path / "log.csv"), tmp_path / "other")


BAD = [
    (lambda f: f.drop(columns="item_id"), {}, "events lack column 'item_id'; found"),
    (
        lambda f: f.assign(item_id=f.item_id.mask(f.index == 7)),
        {},
        "column 'item_id' has 1 nulls, the first in row 7 of .*log.parquet",
    ),
    (lambda f: f.assign(user_id=f.user_id.where(f.index != 4, -3)), {}, "has id -3 in row 4 of .*log.parquet"),
    (lambda f: f.assign(user_id=f.user_id + 0.5), {}, "column 'user_id' holds float values; ids are"),
    (lambda f: f.assign(timestamp=f.timestamp.dt.tz_localize(None)), {}, "row 0 of .* has no time zone"),
    (lambda f: f.assign(timestamp=f.timestamp.astype("int64")), {}, "say their unit"),
    (
        lambda f: f.assign(timestamp=range(len(f))),
        {"timestamp_unit": "s"},
        "row 0 .* is before 1990; are .*another unit than 's'",
    ),
    (lambda f: f.assign(timestamp=f.timestamp + pd.Timedelta(days=20_000)), {}, "lies in the future"),
    (lambda f: f.iloc[:0], {}, "the log is empty"),
]


@pytest.mark.parametrize(("change", "how", "message"), BAD, ids=[message[:25] for _, _, message in BAD])
def test_what_breaks_the_format_is_refused_and_nothing_is_left(log, tmp_path, change, how, message):
    change(log).to_parquet(tmp_path / "log.parquet")
    with pytest.raises(SchemaError, match=message):
        build_sequences(str(tmp_path / "log.parquet"), tmp_path / "out", **how)
    assert [path.name for path in tmp_path.iterdir()] == ["log.parquet"]


def test_wrong_use(log, tmp_path, monkeypatch):
    log.to_parquet(tmp_path / "log.parquet")
    source = str(tmp_path / "log.parquet")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").write_text("precious")
    with pytest.raises(UsageError, match="there already and not empty"):
        build_sequences(source, tmp_path / "taken")
    with pytest.raises(UsageError, match="no file"):
        build_sequences(str(tmp_path / "nowhere.parquet"), tmp_path / "out")
    with pytest.raises(UsageError, match="give 300 or more"):
        build_sequences(source, tmp_path / "out", memory_mb=5)
    with pytest.raises(UsageError, match="partitions = 0"):
        build_sequences(source, tmp_path / "out", partitions=0)
    (tmp_path / "log.xlsx").write_text("x")
    with pytest.raises(UsageError, match=r"nothing that `bseq sequences` reads"):
        build_sequences(str(tmp_path / "log.xlsx"), tmp_path / "out")
    (tmp_path / "torn.parquet").write_bytes((tmp_path / "log.parquet").read_bytes()[:-100])
    with pytest.raises(SchemaError, match="can't be read"):
        build_sequences(str(tmp_path / "torn.parquet"), tmp_path / "out")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("bseq_plugin.readers.build_sequences.pq.write_table", full)
        with pytest.raises(BseqError, match="No space left on device; nothing is left of it"):
            build_sequences(source, tmp_path / "out")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"log.parquet", "taken", "log.xlsx", "torn.parquet"}


@pytest.fixture
def built(log, tmp_path):
    log.to_parquet(tmp_path / "log.parquet")
    return build_sequences(str(tmp_path / "log.parquet"), tmp_path / "out", partitions=3)


def test_a_partition_that_is_missing_or_truncated_is_named(built):
    whole = (built.folder / "part-00001.parquet").read_bytes()
    (built.folder / "part-00001.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SchemaError, match=r"part-00001.parquet has \d+ bytes, written were \d+: it is truncated"):
        PartitionedSequences.open(built.folder)
    (built.folder / "part-00001.parquet").write_bytes(b"x" * len(whole))  # the right size, but nothing in it
    with pytest.raises(SchemaError, match=r"part-00001.parquet can't be read as Parquet"):
        PartitionedSequences.open(built.folder).row_group_users(1)
    (built.folder / "part-00001.parquet").unlink()
    with pytest.raises(SchemaError, match=r"part-00001.parquet is missing"):
        PartitionedSequences.open(built.folder)
    (built.folder / "sequences.json").write_text("{")
    with pytest.raises(SchemaError, match=r"sequences.json can't be read"):
        PartitionedSequences.open(built.folder)
    (built.folder / "sequences.json").unlink()
    with pytest.raises(SchemaError, match="bseq sequences"):
        PartitionedSequences.open(built.folder)


def test_parts_of_another_engine_are_sealed(built):
    """Only the parts are another engine's business; the rest is found from them."""
    (built.folder / "items.parquet").unlink()
    (built.folder / "sequences.json").rename(built.folder / "before.json")
    found = seal(built.folder)
    before = {**json.loads((built.folder / "before.json").read_text()), "summary": None}
    assert json.loads((built.folder / "sequences.json").read_text()) == before
    assert found.vocabulary.item_counts.tolist() == built.vocabulary.item_counts.tolist()
    assert histories(read_all(found), found.vocabulary) == histories(read_all(built), built.vocabulary)
    table = pq.read_table(built.folder / "part-00002.parquet")
    pq.write_table(table.drop_columns(["timestamps"]), built.folder / "part-00002.parquet")
    with pytest.raises(SchemaError, match=r"part-00002.parquet lacks column 'timestamps'"):
        seal(built.folder)


def test_users_stand_in_one_part_in_ascending_order(built):
    seen = [pq.read_table(path)["user_id"].to_pylist() for path in sorted(built.folder.glob("part-*.parquet"))]
    assert all(users == sorted(set(users)) for users in seen)
    every = [user for users in seen for user in users]
    assert len(every) == len(set(every)) == built.n_users


def test_the_command(log, tmp_path, python):
    log.to_parquet(tmp_path / "log.parquet")
    command = ("-m", "bseq_plugin.cli.main", "sequences")
    done = python(*command, tmp_path / "log.parquet", "--out", tmp_path / "out", "--partitions", "2")
    assert (done.returncode, done.stdout) == (0, "")
    assert "3,000 events of 200 users in 2 partitions" in done.stderr
    again = python(*command, tmp_path / "out", "--seal")
    assert (again.returncode, "2 partitions" in again.stderr) == (0, True)
    wrong = python(*command, tmp_path / "log.parquet")
    assert (wrong.returncode, "--out FOLDER" in wrong.stderr) == (2, True)
