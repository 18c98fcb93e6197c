"""Pieces of any size give the bytes of the whole, in bounded memory; a failure leaves the old file."""

from __future__ import annotations

import os

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from bseq_plugin import FeatureEngine, FeatureSpec, SchemaError, UsageError
from bseq_plugin.ranking import write_features
from bseq_plugin.ranking.features import FEATURES
from bseq_plugin.ranking.streaming import candidate_pieces
from bseq_plugin.testing.ranking_features import NOW, log, manager_with, mean_model

MANAGER = manager_with(*FEATURES)


@pytest.fixture(scope="module")
def engine():
    random = np.random.default_rng(0)
    rows = zip(random.integers(0, 30, 900), random.integers(99, 110, 900), -random.uniform(1, 9e5, 900), strict=True)
    return FeatureEngine(log(list(rows)), model=mean_model(2), manager=MANAGER)


@pytest.fixture(scope="module")
def candidates():
    random = np.random.default_rng(1)
    return pd.DataFrame({"user_id": np.sort(random.integers(0, 35, 700)), "item_id": random.integers(99, 110, 700)})


@pytest.mark.parametrize("rows", [1, 97, 700, 5_000])
def test_pieces_of_any_size_give_the_same_file(engine, candidates, tmp_path, rows):
    some = candidates[:60] if rows == 1 else candidates
    some.to_parquet(tmp_path / "candidates.parquet")
    done = []
    count = write_features(engine, tmp_path / "candidates.parquet", tmp_path / "out.parquet", NOW, rows, done.append)
    whole = engine.features(some, NOW).to_arrow()
    read = pq.read_table(tmp_path / "out.parquet")
    assert count == sum(done) == len(some)
    assert pq.ParquetFile(tmp_path / "out.parquet").num_row_groups == -(-len(some) // rows)
    assert read.schema.equals(whole.schema, check_metadata=True)
    for name in whole.column_names:
        ours, theirs = (table[name].combine_chunks() for table in (whole, read))
        if "list" in str(ours.type):
            ours, theirs = ours.flatten(), theirs.flatten()
        same = ours.to_numpy(zero_copy_only=False), theirs.to_numpy(zero_copy_only=False)
        assert same[0].tobytes() == same[1].tobytes() or same[0].dtype == object, name


def test_wrong_pieces_leave_the_old_file(engine, candidates, tmp_path):
    out = tmp_path / "out.parquet"
    out.write_bytes(b"old")
    with pytest.raises(UsageError, match="no candidates"):
        write_features(engine, candidates[:0], out, NOW)
    with pytest.raises(SchemaError, match="id -1 in row 2"):
        write_features(engine, candidates.assign(item_id=[*range(100, 401), -1, *range(398)]), out, NOW, 299)
    with pytest.raises(UsageError, match="there is no file"):
        write_features(engine, tmp_path / "nowhere.parquet", out, NOW)
    with pytest.raises(UsageError, match="a piece has 1 row or more"):
        list(candidate_pieces(candidates, 0))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(UsageError, match=r"broken\.parquet can't be read"):
        write_features(engine, tmp_path / "broken.parquet", out, NOW)
    assert out.read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["broken.parquet", "out.parquet"]


MEMORY = """
import resource, sys
import numpy as np, pandas as pd, torch
torch.set_num_threads(1)
from bseq_plugin.ranking.features import FEATURES
from bseq_plugin import FeatureEngine
from bseq_plugin.ranking import write_features
from bseq_plugin.testing.ranking_features import NOW, log, manager_with, mean_model
events = log([(u, 100 + (u + t) % 8, -float(t + 1)) for u in range(200) for t in range(20)])
engine = FeatureEngine(events, model=mean_model(2), manager=manager_with(*FEATURES), block_numbers=500_000)
folder, n_rows = sys.argv[1], int(sys.argv[2])
frame = pd.DataFrame({"user_id": np.arange(n_rows) * 200 // n_rows, "item_id": 100 + np.arange(n_rows) % 8})
frame.to_parquet(f"{folder}/in.parquet")
del frame
write_features(engine, f"{folder}/in.parquet", f"{folder}/warm.parquet", NOW, 10_000) if n_rows <= 10_000 else None
write_features(engine, f"{folder}/in.parquet", f"{folder}/out.parquet", NOW, 10_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def test_memory_does_not_grow_with_the_candidates(python, tmp_path):
    """Twelve times the rows: 60 MB of numbers more, if they were held."""
    peaks = []
    for n_rows in (10_000, 120_000):
        done = python("-c", MEMORY, tmp_path, n_rows)
        assert done.returncode == 0, done.stderr
        peaks.append(float(done.stdout))
    assert pq.ParquetFile(tmp_path / "out.parquet").metadata.num_rows == 120_000
    assert peaks[1] - peaks[0] < 40, peaks


def test_a_small_specification_is_a_small_file(candidates, tmp_path):
    spec = FeatureSpec(names=("n_events", "sim_max"))
    engine = FeatureEngine(log([(1, 100, -1.0)]), spec, model=mean_model(), manager=MANAGER)
    write_features(engine, candidates, tmp_path / "out.parquet", NOW)
    assert pq.read_schema(tmp_path / "out.parquet").names == [
        "user_id", "item_id", "event_timestamp", "n_events", "n_events_isnull", "sim_max", "sim_max_isnull"
    ]  # fmt: skip
