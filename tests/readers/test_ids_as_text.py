"""Ids come out of text files as they stand there, and lists of events come back as a log."""

import pandas as pd
import pytest

from bseq_plugin import SchemaError, Sequences, Vocabulary, read_events


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (["7", "12"], [7, 12]),
        (["007", "7"], ["007", "7"]),
        (["7e3", "7"], ["7e3", "7"]),
        (["7", "a"], ["7", "a"]),
        ([str(2**63 - 1), "1"], [2**63 - 1, 1]),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_ids_are_numbers_only_where_that_loses_nothing(tmp_path, written, read, suffix):
    path = tmp_path / f"log.{suffix}"
    lines = [["user_id", "item_id", "timestamp"], *([user, "5", "1600000000"] for user in written)]
    path.write_text("\n".join(("," if suffix == "csv" else "\t").join(line) for line in lines) + "\n")
    assert read_events(path, timestamp_unit="s").frame.user_id.tolist() == read


@pytest.mark.parametrize(("text", "message"), [("-3", "has id -3 in row 1"), ("1.5", "ids are integers or strings")])
def test_bad_numbers_are_still_bad(tmp_path, text, message):
    path = tmp_path / "log.csv"
    first = "1.0" if "." in text else "1"
    path.write_text(f"user_id,item_id,timestamp\n{first},5,1600000000\n{text},5,1600000000\n")
    with pytest.raises(SchemaError, match=message):
        read_events(path, timestamp_unit="s")


def test_sequences_parquet_is_a_log(tmp_path):
    frame = pd.DataFrame(
        {
            "user_id": [1, 1, 2, 2, 2],
            "item_id": ["a", "rare", "b", "a", "b"],
            "timestamp": pd.to_datetime([f"2024-01-0{day}" for day in (1, 2, 1, 3, 4)], utc=True),
            "event_type": ["view", "buy", "buy", "view", "buy"],
        }
    )  # fmt: skip
    events = read_events(frame)
    vocabulary = Vocabulary.from_events(events, min_count=2)
    Sequences.from_events(events, vocabulary).save(tmp_path / "sequences.parquet", vocabulary)
    back = read_events(tmp_path / "sequences.parquet").frame
    expected = events.frame[events.frame.item_id != "rare"].reset_index(drop=True)  # its id was not kept
    pd.testing.assert_frame_equal(back[list(expected.columns)], expected, check_dtype=False)
