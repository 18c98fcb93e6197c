"""The demo on a part of its real data: every file it promises, with what the documentation says is in them."""

import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from bseq_plugin import Retriever, UsageError
from bseq_plugin.cli.main import app


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "out"
    result = CliRunner().invoke(app, ["demo", "--quick", "--out", str(folder)], catch_exceptions=False)
    assert result.exit_code == 0
    return folder, result.stdout


def test_the_metrics_file_has_the_documented_shape(demo):
    metrics = json.loads((demo[0] / "metrics.json").read_text())
    assert {"protocol", "model", "served", "baselines", "seconds"} <= set(metrics)
    assert {"popularity", "popularity_28d", "personal_frequency", "transition_graph", "session_knn"} <= set(
        metrics["baselines"]
    )
    for ranker in (metrics["model"], metrics["served"], *metrics["baselines"].values()):
        for part in ("all", "new"):
            assert 0.0 <= ranker[part]["ndcg@20"] <= 1.0
            assert 0.0 <= ranker[part]["recall@20"] <= 1.0
    # even a sixth of the households is enough for these two: a model that knows nothing fails them
    assert metrics["served"]["all"]["ndcg@20"] > metrics["baselines"]["personal_frequency"]["all"]["ndcg@20"]
    assert metrics["model"]["all"]["ndcg@20"] > metrics["baselines"]["popularity_28d"]["all"]["ndcg@20"]


def test_candidates_come_from_the_store_and_have_features_as_of_the_cut(demo):
    candidates = pd.read_parquet(demo[0] / "candidates.parquet")
    features = pd.read_parquet(demo[0] / "ranking_features.parquet")
    assert len(features) == len(candidates)
    assert (features.event_timestamp == pd.Timestamp("2017-12-01", tz="UTC")).all()
    retriever = Retriever.open(demo[0] / "store")
    user = candidates.user_id.iloc[0]
    again = retriever.retrieve([user], 20, exclude="none", at="2017-12-01T00:00:00+00:00")
    assert again.item_id.tolist() == candidates[candidates.user_id == user].item_id.tolist()
    newest = np.asarray(retriever.histories.timestamps).max()
    assert newest < pd.Timestamp("2017-12-01", tz="UTC").value // 1_000


def test_it_shows_tables_products_by_name_and_where_everything_is(demo):
    folder, shown = demo
    assert "products new to the household" in shown
    assert "household" in shown
    assert "(national)" in shown
    assert "ranking_features.parquet" in shown
    assert (folder / "comparison.png").stat().st_size > 10_000


def test_a_folder_that_is_no_demo_is_left_alone(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds no demo"):
        CliRunner().invoke(app, ["demo", "--quick", "--out", str(tmp_path)], catch_exceptions=False)
    assert (tmp_path / "store" / "mine.txt").read_text() == "mine"
