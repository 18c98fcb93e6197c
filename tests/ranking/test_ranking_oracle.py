"""Every feature against a loop in float64 that follows the definitions word for word."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bseq_plugin.feature_generators import FEATURES
from bseq_plugin.ranking import FeatureSpec, ranking_features
from bseq_plugin.testing.ranking_features import NOW, NOW_US, log, manager_with, mean_model

MANAGER = manager_with(*FEATURES)
K = 3
USERS, ITEMS = st.integers(1, 4), st.integers(99, 109)  # items 99, 108 and 109 are unknown to the model
EVENTS = st.lists(st.tuples(USERS, ITEMS, st.integers(-50, 20)), min_size=1, max_size=40)
ROWS = st.lists(st.tuples(USERS, ITEMS, st.integers(-30, 5)), min_size=1, max_size=12)


def unit(vector):
    return vector / np.sqrt(np.sum(vector * vector))


def nan_or(values, function):
    return function(values) if len(values) else np.nan


def oracle(model, rows, user, item, at_us, n_interests, history_length, ttl_days):
    """Features of one candidate row, by name."""
    dim = model.item_vectors_VD.shape[1]
    vectors = model.item_vectors_VD.double().numpy()
    place = {int(i): n + 1 for n, i in enumerate(model.vocabulary.item_ids)}
    past = [(t, n, i) for n, (u, i, t) in enumerate(rows) if u == user and NOW_US + t * 1_000_000 < at_us]
    past.sort()  # equal times by place in the log
    if past and ttl_days is not None and at_us - (NOW_US + past[-1][0] * 1_000_000) > ttl_days * 86_400_000_000:
        past = []
    events = [place[i] for _, _, i in past[-history_length:] if i in place]
    encoded = [place[i] for _, _, i in past[-model.recipe.max_length :] if i in place]
    interests = [encoded[k::n_interests] for k in range(n_interests)]
    interests = [unit(vectors[rows].mean(0)) if rows else None for rows in interests]
    there = [(k, interest) for k, interest in enumerate(interests) if interest is not None]
    c = unit(vectors[place[item]]) if item in place else np.full(dim, np.nan)
    sims = [float(i @ c) for _, i in there] if item in place else []
    pooled = np.full(dim, np.nan)
    if there:
        mean = sum(i for _, i in there) / len(there)
        weight = np.exp([i @ mean for _, i in there])
        pooled = sum(w * i for w, (_, i) in zip(weight / weight.sum(), there, strict=True))
    nothing = np.full(dim, np.nan)
    hist = [float(unit(vectors[e]) @ c) for e in events] if item in place else []
    ranked = sorted(sims, reverse=True)
    return {
        "user_interests": np.concatenate([nothing if i is None else i for i in interests]),
        "interest_mask": np.array([i is not None for i in interests], float),
        "user_pooled": pooled,
        "item_vec": c,
        "sim_max": nan_or(sims, max),
        "sim_mean": nan_or(sims, np.mean),
        "sim_top2_gap": ranked[0] - ranked[1] if len(ranked) > 1 else np.nan,
        "sim_argmax_interest": nan_or(sims, lambda s: there[int(np.argmax(s))][0]),
        "sim_soft": nan_or(sims, lambda s: np.sum(np.exp(s) * s) / np.sum(np.exp(s))),
        "sim_pooled": float(unit(pooled) @ c),
        "sim_per_interest": np.array([np.nan if i is None else i @ c for i in interests]),
        "sim_last1": nan_or(hist[-1:], np.mean),
        "sim_last3_mean": nan_or(hist[-3:], np.mean),
        "hist_sim_max": nan_or(hist, max),
        "hist_sim_mean": nan_or(hist, np.mean),
    }


@settings(max_examples=60, deadline=None)
@given(EVENTS, ROWS, st.sampled_from([1, K]), st.sampled_from([1, 4, 200]), st.sampled_from([None, 10 / 86_400]))
def test_every_feature_equals_the_loop(rows, asked, n_interests, history_length, ttl_days):
    model = mean_model(n_interests)
    spec = FeatureSpec(history_length=history_length, ttl_days=ttl_days)
    candidates = pd.DataFrame(asked, columns=["user_id", "item_id", "at"])
    candidates["at"] = NOW + pd.to_timedelta(candidates["at"], unit="s")
    table = ranking_features(candidates, log(rows), features=spec, model=model, manager=MANAGER)
    for row, (user, item, seconds) in enumerate(asked):
        at_us = NOW_US + seconds * 1_000_000
        wanted = oracle(model, rows, user, item, at_us, n_interests, history_length, ttl_days)
        assert list(wanted) == table.names
        for name, value in wanted.items():
            got = table.columns[name][row]
            if name == "sim_argmax_interest" and wanted["sim_top2_gap"] < 1e-6:
                continue  # which of two equal interests wins is up to the last bit
            np.testing.assert_allclose(got, value, rtol=0, atol=1e-6, equal_nan=True, err_msg=f"{name} of row {row}")


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
