"""Feature tables: Parquet, pandas and KeyedTensor say the same, and a failed write leaves the old file."""

from __future__ import annotations

import os

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bseq_plugin import BseqError, UsageError, ranking_features
from bseq_plugin.ranking.features import FEATURES
from bseq_plugin.testing.ranking_features import DIM, NOW, log, mean_model

K = 2
WIDTHS = {
    "user_interests": K * DIM, "interest_mask": K, "user_pooled": DIM, "item_vec": DIM, "sim_per_interest": K,
    "din_ctx": DIM,
}  # fmt: skip


@pytest.fixture
def table(manager):
    candidates = pd.DataFrame({"user_id": [3, 1, 2, 1], "item_id": [100, 101, 102, 999]})
    events = log([(1, 100, -10.0), (1, 101, -5.0), (2, 103, -7.0)])  # user 2 has one interest of two, user 3 none
    return ranking_features(candidates, events, NOW, model=mean_model(K), manager=manager)


def test_parquet_round_trip(table, tmp_path):
    table.to_parquet(tmp_path / "features.parquet")
    read = pq.read_table(tmp_path / "features.parquet")
    assert read.schema.equals(table.to_arrow().schema, check_metadata=True)
    assert read.column_names[:5] == ["user_id", "item_id", "event_timestamp", "user_interests", "user_interests_isnull"]
    assert read.num_columns == 3 + 2 * len(table.names)
    assert len(table.names) == len(FEATURES) + 4 + 4 + 3 - 3 + 1  # windows, half lives, functions of an age, two types
    assert read["user_id"].to_pylist() == [3, 1, 2, 1]
    assert read.schema.field("event_timestamp").type == pa.timestamp("us", tz="UTC")
    assert read["event_timestamp"].to_pylist() == [NOW.to_pydatetime()] * 4
    for name, values in table.columns.items():
        column = read[name].combine_chunks()
        if name in WIDTHS:
            assert (column.type.list_size, column.type.value_type) == (WIDTHS[name], pa.float32())
            column = column.flatten()
        assert column.null_count == 0
        assert column.to_numpy(zero_copy_only=False).tobytes() == values.tobytes()
        assert read[name + "_isnull"].to_pylist() == table.isnull(name).tolist()
        assert read.schema.field(name).metadata[b"description"].decode() == table.descriptions[name]
    assert os.listdir(tmp_path) == ["features.parquet"]


def test_missing_is_nan_and_marked_never_zero(table):
    frame = table.to_pandas()
    assert frame["sim_max_isnull"].tolist() == [True, False, False, True]
    assert frame["sim_max"].isna().tolist() == [True, False, False, True]
    assert frame["user_interests_isnull"].tolist() == [True, False, False, False]
    assert frame["interest_mask"].map(list).tolist() == [[0, 0], [1, 1], [1, 0], [1, 1]]
    assert np.isnan(frame["user_interests"][2]).tolist() == [False] * DIM + [True] * DIM
    assert frame["sim_top2_gap_isnull"].tolist() == [True, False, True, True]


def test_pandas_has_the_columns_of_the_parquet_file(table, tmp_path):
    table.to_parquet(tmp_path / "features.parquet")
    read = pd.read_parquet(tmp_path / "features.parquet")
    pd.testing.assert_frame_equal(table.to_pandas(), read, check_dtype=True)


def test_keyed_tensor_fills_and_marks(table):
    keyed = table.to_keyed_tensor()
    assert keyed.keys() == [*table.names, *(f"{name}_isnull" for name in table.names)]
    widths = [WIDTHS.get(name, 1) for name in table.names]
    assert keyed.length_per_key() == [*widths, *[1] * len(widths)]
    assert keyed.values().shape == (4, sum(widths) + len(widths))
    assert not keyed.values().isnan().any()
    for name, values in table.columns.items():
        np.testing.assert_array_equal(keyed[name].numpy(), np.nan_to_num(values.reshape(4, -1), nan=0.0))
        assert keyed[f"{name}_isnull"][:, 0].bool().tolist() == table.isnull(name).tolist()


def test_keyed_tensor_keeps_nan_or_fills_otherwise(table):
    kept = table.to_keyed_tensor(fill=None)
    assert kept.keys() == table.names
    np.testing.assert_array_equal(kept["sim_max"][:, 0].numpy(), table.columns["sim_max"])
    assert table.to_keyed_tensor(fill=-2.0)["sim_max"][0, 0] == -2


def test_a_failed_write_leaves_the_old_file(table, tmp_path, monkeypatch):
    path = tmp_path / "features.parquet"
    path.write_bytes(b"old")

    def no_space(*args, **kwargs):
        raise OSError(28, "No space left on device")

    for module, name in ((pq, "write_table"), (os, "fsync"), (os, "replace")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, no_space)
            with pytest.raises(BseqError, match=r"can't write .*features\.parquet.*No space left"):
                table.to_parquet(path)
        assert path.read_bytes() == b"old"
        assert os.listdir(tmp_path) == ["features.parquet"]


def test_a_missing_folder_is_named(table, tmp_path):
    with pytest.raises(UsageError, match="there is no folder"):
        table.to_parquet(tmp_path / "nowhere" / "features.parquet")
