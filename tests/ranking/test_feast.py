"""The generated feature view: its source compiles and names every column; Feast itself joins what the file holds."""

from __future__ import annotations

import ast
import subprocess
import venv

import numpy as np
import pandas as pd
import pytest

from bseq_plugin import FeatureEngine, UsageError
from bseq_plugin.ranking import write_features
from bseq_plugin.ranking.features import FEATURES
from bseq_plugin.ranking.table import feast_feature_view
from bseq_plugin.testing.ranking_features import NOW, log, manager_with, mean_model


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(file, table) of two instants a day apart."""
    engine = FeatureEngine(
        log([(u, 100 + (u + t) % 8, -90_000.0 * t - 1) for u in range(4) for t in range(9)]),
        model=mean_model(2), manager=manager_with(*FEATURES),
    )  # fmt: skip
    candidates = pd.DataFrame({"user_id": np.repeat([0, 1, 2, 7], 3), "item_id": [101, 102, 999] * 4})
    both = pd.concat([candidates.assign(at=NOW - pd.Timedelta(1, "D")), candidates.assign(at=NOW)])
    path = tmp_path_factory.mktemp("feast") / "features.parquet"
    write_features(engine, both, path)
    return path, engine.features(both).to_pandas()


def test_the_source_names_every_column_once(written):
    path, frame = written
    source = feast_feature_view(path, "user_interest_v3", ttl_days=1.5)
    fields = [
        call.keywords[0].value.value
        for call in ast.walk(ast.parse(source))
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "Field"
    ]
    assert fields == [name for name in frame.columns if name not in ("user_id", "item_id", "event_timestamp")]
    assert "ttl=timedelta(days=1.5)" in source
    assert "name='user_interests', dtype=Array(Float32)" in source
    assert "name='sim_max_isnull', dtype=Bool)" in source


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"name": "user interest"}, "can't be called 'user interest'"),
        ({"ttl_days": -1}, "ttl_days = -1"),
        ({"parquet": "nowhere.parquet"}, "there is no file"),
    ],
)
def test_wrong_use(written, change, text):
    with pytest.raises(UsageError, match=text):
        feast_feature_view(**{"parquet": written[0], "name": "view", **change})


def test_another_table_is_refused(tmp_path):
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(UsageError, match="has no column 'user_id'; it is no table of ranking features"):
        feast_feature_view(tmp_path / "a.parquet", "view")
    (tmp_path / "b.parquet").write_bytes(b"no")
    with pytest.raises(UsageError, match=r"b\.parquet can't be read"):
        feast_feature_view(tmp_path / "b.parquet", "view")


STORE = """\
project: bseq
registry: registry.db
provider: local
offline_store: {type: file}
online_store: {type: sqlite, path: online.db}
entity_key_serialization_version: 3
"""

JOIN = """\
import sys
import pandas as pd
from feast import FeatureStore
import features
store = FeatureStore(repo_path=".")
store.apply([features.user, features.item, features.bseq_features])
asked = pd.read_parquet("asked.parquet")
names = ["sim_max", "sim_max_isnull", "n_events", "user_interests"]
found = store.get_historical_features(asked, [f"bseq_features:{name}" for name in names]).to_df()
found.to_parquet("found.parquet")
print(sorted(field.name for field in store.get_feature_view("bseq_features").schema if "isnull" in field.name)[:1])
"""


@pytest.mark.slow
def test_feast_joins_what_the_file_holds(written, tmp_path):
    """In an environment of its own, which pip fills with Feast."""
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    command = [python, "-m", "pip", "install", "-q", "feast>=0.60", "pandas", "pyarrow"]
    subprocess.run(command, check=True, timeout=900)
    join(python, written, tmp_path)


def join(python, written, folder):
    path, frame = written
    (folder / "features.py").write_text(feast_feature_view(path, "bseq_features", ttl_days=1), encoding="utf-8")
    (folder / "feature_store.yaml").write_text(STORE, encoding="utf-8")
    asked = frame[["user_id", "item_id", "event_timestamp"]]
    asked.to_parquet(folder / "asked.parquet")
    done = subprocess.run([python, "-c", JOIN], cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    keys = ["user_id", "item_id", "event_timestamp"]
    found = pd.read_parquet(folder / "found.parquet")
    found["event_timestamp"] = found["event_timestamp"].astype(frame["event_timestamp"].dtype)
    both = frame[[*keys, "sim_max", "sim_max_isnull", "n_events"]].merge(found, on=keys, suffixes=("", "_feast"))
    assert len(both) == len(frame)
    np.testing.assert_array_equal(both["sim_max"].to_numpy(), both["sim_max_feast"].astype("float32").to_numpy())
    np.testing.assert_array_equal(both["n_events"].to_numpy(), both["n_events_feast"].astype("float32").to_numpy())
    np.testing.assert_array_equal(both["sim_max_isnull"], both["sim_max_isnull_feast"].astype(bool))
