"""A fitted transform: standard or quantile scores of what is there, ids of what is a name, the same in serving."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
from torchrec.models.dlrm import DLRM

from bseq_plugin import FeatureSpec, UsageError, ranking_features
from bseq_plugin.ranking.transform import FeatureTransform
from bseq_plugin.testing.ranking_features import NOW, log, mean_model

VALUES = st.floats(-1e7, 1e7, width=32) | st.just(math.nan)
COLUMNS = arrays.arrays(np.float32, st.integers(2, 30), elements=VALUES)


def by_hand(values, clip):
    """A naive loop in float64."""
    there = [float(value) for value in values if not math.isnan(value)]
    long = max((abs(value) for value in there), default=0.0) > 10

    def scaled(value):
        return math.copysign(math.log1p(abs(value)), value) if long else value

    there = [scaled(value) for value in there]
    mean = sum(there) / len(there) if there else 0.0
    deviation = math.sqrt(sum((value - mean) ** 2 for value in there) / len(there)) if there else 0.0
    if deviation < 1e-6 * max(1.0, abs(mean)):
        deviation = 1.0
    scores = [0.0 if math.isnan(value) else (scaled(float(value)) - mean) / deviation for value in values]
    return [min(max(score, -clip), clip) for score in scores]


@given(COLUMNS, st.floats(0.5, 8))
@settings(max_examples=200, deadline=None)
def test_standard_scores_are_those_of_a_loop(values, clip):
    fitted = FeatureTransform.fit({"x": values}, (), "standard", clip)
    got = fitted.numbers({"x": values})["x"][:, 0]
    np.testing.assert_allclose(got, by_hand(values, clip), rtol=1e-4, atol=1e-4)
    again = FeatureTransform.model_validate_json(fitted.model_dump_json())
    assert again.numbers({"x": values})["x"].tobytes() == fitted.numbers({"x": values})["x"].tobytes()


@given(COLUMNS)
@settings(max_examples=100, deadline=None)
def test_quantile_scores_keep_the_order_and_lie_within_one(values):
    fitted = FeatureTransform.fit({"x": values}, (), "quantile", 5.0)
    got = fitted.numbers({"x": values})["x"][:, 0].astype(np.float64)
    there = ~np.isnan(values)
    assert (np.abs(got) <= 1).all()
    assert (got[~there] == 0).all()
    order = np.argsort(values[there], kind="stable")
    assert (np.diff(got[there][order]) >= -1e-6).all()


def test_quantile_scores_of_even_numbers_are_even():
    values = np.random.default_rng(0).permutation(1001).astype(np.float32)
    got = FeatureTransform.fit({"x": values}, (), "quantile", 5.0).numbers({"x": values})["x"][:, 0]
    np.testing.assert_allclose(got, values / 500 - 1, atol=0.02)


def test_vectors_are_scaled_by_component():
    values = np.array([[1, 100], [3, 300], [5, np.nan]], np.float32) / 100
    got = FeatureTransform.fit({"v": values}, (), "standard", 5.0).numbers({"v": values})["v"]
    np.testing.assert_allclose(got, [[-1.224745, -1], [0, 1], [1.224745, 0]], atol=1e-5)


def test_categories_are_ids_and_what_was_never_seen_is_0():
    seen = np.array([3, np.nan, 1e7, 3, 0], np.float32)
    fitted = FeatureTransform.fit({"c": seen, "x": seen}, ["c"], "standard", 5.0)
    assert fitted.cardinalities == {"c": 4}
    assert list(fitted.dense) == ["x"]
    later = np.array([0, 3, 1e7, 2, np.nan, 2e7, -1], np.float32)
    assert fitted.ids({"c": later})["c"].tolist() == [[1], [2], [3], [0], [0], [0], [0]]


def test_keys_are_those_that_were_fitted():
    x = np.arange(4, dtype=np.float32)
    fitted = FeatureTransform.fit({"x": x, "v": np.stack([x, x], 1)}, (), "standard", 5.0)
    more = {"new": x, "v": np.stack([x, x], 1), "x": x}
    assert list(fitted.numbers(more)) == ["x", "v"]
    with pytest.raises(UsageError, match=r"fitted to feature 'x', which is not among these: \['v'\]"):
        fitted.numbers({"v": more["v"]})
    with pytest.raises(UsageError, match="feature 'v' has width 1, the transform was fitted to 2"):
        fitted.numbers({"x": x, "v": x})


@pytest.mark.parametrize(
    ("rows", "clip", "said"), [(1, 5.0, "1 rows are too few"), (3, 0.0, "clip = 0.0"), (3, math.inf, "clip")]
)
def test_what_can_not_be_fitted_is_refused(rows, clip, said):
    with pytest.raises(UsageError, match=said):
        FeatureTransform.fit({"x": np.zeros(rows, np.float32)}, (), "standard", clip)


def test_scores_of_another_name_are_refused(rows):
    spec, table, _ = rows
    with pytest.raises(UsageError, match=r"scores = 'minmax'; there are: \['standard', 'quantile'\]"):
        spec.fitted(table, scores="minmax")


@pytest.mark.parametrize("wrong", [np.float32(np.inf), np.float32(-np.inf)])
@pytest.mark.parametrize("name", ["n_events", "sim_argmax_interest"])
def test_an_infinite_value_is_named_and_not_fitted(rows, name, wrong):
    spec, table, _ = rows
    values = table.columns[name].copy()
    values[7] = wrong
    with pytest.raises(UsageError, match=f"feature '{name}' is {wrong} in row 7 "):
        spec.fitted(replace(table, columns={**table.columns, name: values}))
    wide = {name: np.stack([table.columns[name], values], 1)}
    with pytest.raises(UsageError, match=f"feature '{name}' is {wrong} in row 7 "):
        spec.fitted(replace(table, columns=wide))


@pytest.fixture(scope="module")
def make(manager):
    """Features, by a specification, of 2,000 candidates of 60 users."""
    random = np.random.default_rng(0)
    users = [user for user in range(60) for _ in range(1 + user % 9)]
    events = log([(user, 100 + int(random.integers(0, 4)), -float(random.exponential(5e5))) for user in users])
    candidates = pd.DataFrame({"user_id": random.integers(0, 60, 2_000), "item_id": random.integers(100, 104, 2_000)})
    return lambda spec: ranking_features(candidates, events, NOW, model=mean_model(2), features=spec, manager=manager)


@pytest.fixture(scope="module")
def rows(make):
    """Features, with a click that a scalar one decides on: a recent event."""
    spec = FeatureSpec.without("vectors")
    table = make(spec)
    age = np.nan_to_num(table.columns["secs_since_last_event"], nan=1e7)
    clicks = (age < np.median(age)).astype(np.float32)
    return spec, table, torch.from_numpy(clicks)


def test_a_specification_keeps_what_was_fitted(rows, tmp_path, manager):
    spec, table, _ = rows
    fitted = spec.fitted(table)
    assert spec.transform is None
    fitted.save(tmp_path / "features.json")
    again = FeatureSpec.load(tmp_path / "features.json", manager)
    assert again == fitted
    candidates = pd.DataFrame({"user_id": [3, 1, 2, 1], "item_id": [100, 101, 102, 999]})
    some = log([(1, 100, -10.0), (1, 101, -5.0), (2, 103, -7.0)])
    served = ranking_features(candidates, some, NOW, model=mean_model(2), features=again, manager=manager)
    tensor, sparse = served.to_keyed_tensor(), served.to_sparse()
    dense = list(fitted.transform.dense)
    assert tensor.keys() == dense + [f"{name}_isnull" for name in dense]
    assert float(tensor.values().abs().max()) <= 5
    assert bool(torch.isfinite(tensor.values()).all())
    assert sparse.keys() == list(fitted.transform.cardinalities)
    assert all(int(sparse[key].values().max()) < n for key, n in fitted.transform.cardinalities.items())
    with pytest.raises(UsageError, match="to_sparse needs a specification that was fitted"):
        table.to_sparse()


def test_another_encoder_changes_no_key_and_no_id(rows, manager):
    spec, table, _ = rows
    fitted = spec.fitted(table)
    assert "encoder_version" in table.columns
    candidates = pd.DataFrame({"user_id": [3, 1, 2, 1], "item_id": [100, 101, 102, 999]})
    some = log([(1, 100, -10.0), (1, 101, -5.0), (2, 103, -7.0)])
    before, after = (
        ranking_features(
            candidates, some, NOW, model=replace(mean_model(2), digest=d), features=fitted, manager=manager
        )
        for d in ("0" * 64, "f" * 64)
    )
    assert not np.array_equal(before.columns["encoder_version"], after.columns["encoder_version"])
    assert after.to_sparse().keys() == before.to_sparse().keys() == ["sim_argmax_interest", "retrieval_interest"]
    assert torch.equal(after.to_sparse().values(), before.to_sparse().values())
    assert after.to_keyed_tensor().keys() == before.to_keyed_tensor().keys()
    assert torch.equal(after.to_keyed_tensor().values(), before.to_keyed_tensor().values())
    only = FeatureSpec(names=("encoder_version",))
    lone = ranking_features(candidates, some, NOW, model=mean_model(2), features=only, manager=manager)
    with pytest.raises(UsageError, match=r"learns nothing from \['encoder_version'\]"):
        only.fitted(lone)


def losses_of_a_dlrm(dense_NF, sparse, rows, clicks_N, steps=200):
    """Binary cross-entropy of torchrec's DLRM on these features, step by step; ``rows`` of the table of each key."""
    torch.manual_seed(0)
    tables = [
        EmbeddingBagConfig(name=f"t_{key}", embedding_dim=8, num_embeddings=n, feature_names=[key])
        for key, n in rows.items()
    ]
    model = DLRM(EmbeddingBagCollection(tables=tables), dense_NF.shape[1], [32, 8], [16, 1])
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=3e-3), []
    for _ in range(steps):
        loss = nn.functional.binary_cross_entropy_with_logits(model(dense_NF, sparse).squeeze(1), clicks_N)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_a_dlrm_learns_from_them_as_from_features_standardised_by_hand(rows, make):
    spec, table, clicks = rows
    fitted = spec.fitted(table)
    made = make(fitted)
    dense, sparse, cardinalities = made.to_keyed_tensor(), made.to_sparse(), fitted.transform.cardinalities
    names = [name for name in table.names if table.units[name] not in ("category", "version")]
    parts = [part for name in names for part in table.columns[name].reshape(len(table), -1).T]
    by_loop = np.stack([*(by_hand(part, 5.0) for part in parts), *(table.isnull(name) for name in names)], 1)
    by_loop = torch.from_numpy(by_loop.astype(np.float32))
    assert dense.keys() == [*names, *(f"{name}_isnull" for name in names)]
    torch.testing.assert_close(dense.values(), by_loop, rtol=1e-4, atol=1e-4)

    raw = losses_of_a_dlrm(table.to_keyed_tensor().values(), sparse, cardinalities, clicks, 1)
    assert raw[0] > 10  # why there is a transform
    ours, by_hand_ = (losses_of_a_dlrm(values, sparse, cardinalities, clicks) for values in (dense.values(), by_loop))
    assert ours[0] < 1
    assert ours[-1] < 0.1
    assert abs(ours[-1] - by_hand_[-1]) < 0.01
