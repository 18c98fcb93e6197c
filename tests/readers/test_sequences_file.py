"""The form of ``sequences.parquet`` as a log."""

import numpy as np

from bseq_plugin import Sequences, Vocabulary, read_events


def test_all_that_is_saved_is_read(tmp_path):
    vocabulary = Vocabulary(np.array([3, 5, 8]), np.ones(3, np.int64), ("buy", "view"))
    times = np.array([1000, 1200, 1300, 1500], np.int64) * 1_000_000_000_000
    saved = Sequences(
        np.array([1, 2]), np.array([0, 3, 4]), np.array([1, 3, 2, 2]), times, np.array([1, 2, 1, 1]),
        np.array([0, 0, 1, 2]), times + 5_000_000, np.array([1.0, np.nan, 2.5, 0.0]),
    )  # fmt: skip
    saved.save(tmp_path / "sequences.parquet", vocabulary)
    found = Sequences.from_events(read_events(str(tmp_path / "sequences.parquet")), vocabulary)
    for name in ("user_ids", "offsets", "items", "timestamps", "event_types", "created", "values"):
        np.testing.assert_array_equal(getattr(found, name), getattr(saved, name))
