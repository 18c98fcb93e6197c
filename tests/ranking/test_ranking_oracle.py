"""Every feature against a loop in float64 that follows the definitions word for word (``conftest.py``)."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bseq_plugin import FeatureSpec, ranking_features
from bseq_plugin.ranking.features import FEATURES
from bseq_plugin.testing.ranking_features import NOW, NOW_US, log, manager_with, mean_model

MANAGER = manager_with(*FEATURES)
CATEGORIES = pd.DataFrame({"item_id": range(100, 107)}).assign(kind=lambda frame: frame.item_id % 3)
K = 3
USERS, ITEMS = st.integers(1, 4), st.integers(99, 109)  # items 99, 108 and 109 are unknown to the model
EVENTS = st.lists(st.tuples(USERS, ITEMS, st.integers(-50, 20)), min_size=1, max_size=40)
ROWS = st.lists(st.tuples(USERS, ITEMS, st.integers(-30, 5)), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(EVENTS, ROWS, st.sampled_from([1, K]), st.sampled_from([1, 4, 200]), st.sampled_from([None, 10 / 86_400]))
def test_every_feature_equals_the_loop(loop, rows, asked, n_interests, history_length, ttl_days):
    model = mean_model(n_interests)
    spec = FeatureSpec(
        history_length=history_length, ttl_days=ttl_days, category="kind",
        options={"neg_sim_skip": {"event_types": ["click"]}, "secs_since_last_similar": {"theta": 0.3},
                 "session_len": {"gap_minutes": 0.1}, "session_position": {"gap_minutes": 0.1}},
    )  # fmt: skip
    candidates = pd.DataFrame(asked, columns=["user_id", "item_id", "at"])
    candidates["at"] = NOW + pd.to_timedelta(candidates["at"], unit="s")
    candidates = candidates.assign(rank=range(len(asked)), score=0.5, interest=None, n_interests=2.0)
    table = ranking_features(candidates, log(rows), features=spec, model=model, items=CATEGORIES, manager=MANAGER)
    of_row = loop(model, rows, {i: i % 3 for i in range(100, 107)}, history_length, ttl_days)
    for row, (user, item, seconds) in enumerate(asked):
        given = {"rank": row, "score": 0.5, "interest": np.nan, "n_interests": 2}
        wanted = of_row.features(user, item, NOW_US + seconds * 1_000_000, given)
        assert list(wanted) == table.names
        for name, value in wanted.items():
            got = table.columns[name][row]
            if name == "sim_argmax_interest" and wanted["sim_top2_gap"] < 1e-6:
                continue  # which of two equal interests wins is up to the last bit
            if name == "secs_since_last_similar" and of_row.near_theta:
                continue  # so is on which side of theta a cosine lies
            tolerance = 2e-5 if name.startswith("din_") else 1e-6
            where = f"{name} of row {row}"
            np.testing.assert_allclose(got, value, rtol=1e-6, atol=tolerance, equal_nan=True, err_msg=where)


@pytest.mark.parametrize("n_interests", [1, K])
def test_a_vector_of_the_table_gives_its_similarity(n_interests):
    """What a ranker computes from the vectors is what the scalar columns say."""
    rows = [(u, 100 + (3 * u + t) % 8, -float(t)) for u in range(1, 5) for t in range(1, 12)]
    candidates = pd.DataFrame({"user_id": np.repeat(np.arange(1, 5), 8), "item_id": np.tile(np.arange(100, 108), 4)})
    c = ranking_features(candidates, log(rows), NOW, model=mean_model(n_interests), manager=MANAGER).columns
    interests = c["user_interests"].reshape(32, n_interests, -1)
    np.testing.assert_allclose(np.einsum("nkd,nd->nk", interests, c["item_vec"]), c["sim_per_interest"], atol=1e-6)
    np.testing.assert_array_equal(c["sim_per_interest"].max(1), c["sim_max"])
    np.testing.assert_array_equal(c["sim_per_interest"].argmax(1), c["sim_argmax_interest"])
    np.testing.assert_allclose(np.linalg.norm(interests, axis=2), 1, atol=1e-6)
    bought = np.array([(u, i) in {r[:2] for r in rows} for u, i in candidates.to_numpy()])
    np.testing.assert_allclose(c["hist_sim_max"][bought], 1, atol=1e-6)
    assert (np.abs(c["sim_mean"]) <= 1).all()


def test_parallel_vectors_have_cosine_one_and_never_more():
    model = mean_model(1)
    model.item_vectors_VD[1:] = model.item_vectors_VD[1]
    candidates = pd.DataFrame({"user_id": [1], "item_id": [107]})
    table = ranking_features(candidates, log([(1, 100, -1.0), (1, 103, -2.0)]), NOW, model=model, manager=MANAGER)
    for name in ("sim_max", "sim_soft", "sim_pooled", "sim_last1", "sim_last3_mean", "hist_sim_max", "hist_sim_mean"):
        assert 1 - 1e-6 < table.columns[name][0] <= 1


def test_a_zero_vector_has_no_direction():
    model = mean_model(1)
    model.item_vectors_VD[1] = 0
    candidates = pd.DataFrame({"user_id": [1, 1], "item_id": [100, 101]})
    columns = ranking_features(candidates, log([(1, 100, -1.0)]), NOW, model=model, manager=MANAGER).columns
    assert np.isnan(columns["item_vec"][0]).all()
    assert np.isnan(columns["sim_max"]).all()  # the only event, and so the interest, is the zero vector too
    assert np.isnan(columns["hist_sim_max"]).all()
    assert (columns["interest_mask"] == 0).all()
