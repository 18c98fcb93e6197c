"""Features that are names of something: whole numbers of any size stay what they are, from a feature to sparse ids."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bseq_plugin import FeatureEngine, FeatureSpec, PluginError, RankingFeature, UsageError, ranking_features
from bseq_plugin.ranking import write_features
from bseq_plugin.ranking.table import feast_feature_view
from bseq_plugin.ranking.transform import FeatureTransform
from bseq_plugin.testing.ranking_features import NOW, RankingFeatureTests, log, manager_with, mean_model

# neighbours that float32, and float64, take for one number
BRANDS = torch.tensor([-1, 2**24, 2**24 + 1, 2**53, 2**53 + 1, 2**63 - 1, 7, 0, -1])


class Brand(RankingFeature):
    name = "brand"
    description = "who makes the candidate"
    unit = "category"

    def compute(self, inputs):
        return BRANDS[inputs.candidate_N]


class Brands(Brand):
    name = "brands"

    def compute(self, inputs):
        return torch.stack([BRANDS[inputs.candidate_N], BRANDS.flip(0)[inputs.candidate_N]], 1)


class Age(RankingFeature):
    name = "age"
    description = "a number like any other"

    def compute(self, inputs):
        return inputs.candidate_N.float()


class TestBrand(RankingFeatureTests):
    feature, exact = Brand, True


class TestBrands(RankingFeatureTests):
    feature, exact = Brands, True


MANAGER = manager_with(Brand, Brands, Age)
SPEC = FeatureSpec(names=("brand", "age", "brands"))
ROWS = pd.DataFrame({"user_id": 1, "item_id": [99, *range(100, 108), 101]})  # 99 is unknown: row 0
LOG = log([(1, 100, -10.0)])
PLACES = [0, *range(1, 9), 2]


def features(rows, spec=SPEC, manager=MANAGER, **kwargs):
    return ranking_features(rows, LOG, NOW, spec, model=mean_model(), manager=manager, **kwargs)


@pytest.fixture
def table():
    return features(ROWS)


def test_the_table_and_its_file_hold_every_digit(table, tmp_path):
    brand = BRANDS[PLACES].tolist()
    both = list(zip(brand, BRANDS.flip(0)[PLACES].tolist(), strict=True))
    assert table.columns["brand"].tolist() == brand
    assert features(ROWS, block_numbers=1).columns["brand"].tolist() == brand
    assert table.isnull("brand").tolist() == [value < 0 for value in brand]
    assert table.isnull("brands").tolist() == [pair == (-1, -1) for pair in both]
    path = tmp_path / "features.parquet"
    write_features(FeatureEngine(LOG, SPEC, model=mean_model(), manager=MANAGER), ROWS, path, NOW)
    read = pq.read_table(path)
    assert read["brand"].to_pylist() == brand
    assert read["brand_isnull"].to_pylist() == table.isnull("brand").tolist()
    assert read["brands"].to_pylist() == [list(pair) for pair in both]
    pd.testing.assert_frame_equal(table.to_pandas(), pd.read_parquet(path), check_dtype=True)
    source = feast_feature_view(path, "view")
    assert "name='brand', dtype=Int64" in source
    assert "name='brands', dtype=Array(Int64)" in source


def test_sparse_ids_tell_all_names_apart_after_a_file(table, tmp_path):
    SPEC.fitted(table).save(tmp_path / "spec.json")
    spec = FeatureSpec.load(tmp_path / "spec.json", MANAGER)
    assert spec.transform.cardinalities == {"brand": 8, "brands": 8}
    sparse = features(ROWS, spec).to_sparse()
    names = [0, *sorted(set(BRANDS.tolist()) - {-1})]

    def ids(values):
        return [0 if value < 0 else 1 + names[1:].index(value) for value in values]

    assert (sparse.keys(), sparse.stride()) == (["brand", "brands"], len(ROWS))
    assert sparse.values().dtype == torch.int64
    assert [row.tolist() for row in sparse["brand"].to_dense()] == [[i] for i in ids(BRANDS[PLACES].tolist())]
    pairs = torch.stack([BRANDS, BRANDS.flip(0)], 1)[PLACES].tolist()
    assert [row.tolist() for row in sparse["brands"].to_dense()] == [ids(pair) for pair in pairs]
    keyed = features(ROWS, spec).to_keyed_tensor()
    assert keyed.keys() == ["age", "age_isnull"]


NAMES = st.integers(-1, 2**63 - 1) | st.sampled_from([2**24, 2**24 + 1, 2**53, 2**53 + 1])


@given(st.lists(NAMES, min_size=2, max_size=20), st.lists(NAMES, max_size=20))
@settings(max_examples=100, deadline=None)
def test_ids_are_those_of_a_dictionary(seen, later):
    fitted = FeatureTransform.fit({"c": np.array(seen, np.int64)}, ["c"], "standard", 5.0)
    again = FeatureTransform.model_validate(json.loads(fitted.model_dump_json()))
    known = {name: place for place, name in enumerate(sorted({name for name in seen if name >= 0}), 1)}
    asked = np.array(later + seen, np.int64)
    for transform in (fitted, again):
        assert transform.ids({"c": asked})["c"].tolist() == [[known.get(name, 0)] for name in later + seen]
    assert again == fitted


def test_names_that_were_rounded_are_not_taken_for_others(table):
    fitted = SPEC.fitted(table).transform
    rounded = {name: values.astype(np.float32) for name, values in table.columns.items()}
    with pytest.raises(UsageError, match="feature 'brand' is float32, the transform was fitted to int64"):
        fitted.ids(rounded)
    small = FeatureTransform.fit({"c": np.array([1, 2], np.float32)}, ["c"], "standard", 5.0)
    with pytest.raises(UsageError, match="feature 'c' is int64, the transform was fitted to float32"):
        small.ids({"c": np.array([1, 2])})


def test_a_keyed_tensor_of_names_is_exact_or_refused(table):
    with pytest.raises(UsageError, match=r"feature 'brand' is 16777217 in row 2 .*read it from to_sparse"):
        table.to_keyed_tensor()
    few = features(ROWS[7:9])
    assert few.to_keyed_tensor(fill=None)["brand"][:, 0].tolist()[0] == 0
    assert few.to_keyed_tensor(fill=-3.0)["brand"][:, 0].tolist() == [0, -3]
    assert few.to_keyed_tensor()["brand_isnull"][:, 0].tolist() == [0, 1]
    only = FeatureSpec(names=("brand",))
    names = features(ROWS, only.fitted(features(ROWS, only)))
    with pytest.raises(UsageError, match=r"all features of this table are names, \['brand'\]: to_sparse has them"):
        names.to_keyed_tensor()


@pytest.mark.parametrize(
    ("unit", "result", "said"),
    [
        ("category", [2.0**24, 1.0], "'bad' gave 16777216, and float32 rounds names from 2.24 on: return int64"),
        ("category", [-2, 1], "'bad' gave -2; ids are 0 or more, -1 is none"),
        ("events", [1, 2], "'bad' gave torch.int64; it has to be a float32 tensor, or int64 for unit 'category'"),
    ],
)
def test_names_that_do_not_fit_are_refused(unit, result, said):
    class Bad(RankingFeature):
        name = "bad"
        description = "wrong"

        def compute(self, inputs):
            return torch.tensor(result)

    Bad.unit = unit
    with pytest.raises(PluginError, match=said):
        features(ROWS[:2], FeatureSpec(names=("bad",)), manager_with(Bad))


def test_a_type_that_changes_between_blocks_is_refused():
    class Either(Brand):
        def compute(self, inputs):
            ids = BRANDS[inputs.candidate_N]
            return ids.float() if int(ids[0]) == 7 else ids

    rows = ROWS.assign(user_id=range(len(ROWS)))
    with pytest.raises(PluginError, match=r"'brand' gave float32 \(\) and int64 \(\) a row"):
        features(rows, FeatureSpec(names=("brand",)), manager_with(Either), block_numbers=1)


def test_names_of_all_missing_rows_have_one_id(table):
    nothing = replace(table, columns={"brand": np.full(len(table), -1)})
    fitted = FeatureSpec(names=("brand",)).fitted(nothing)
    assert fitted.transform.cardinalities == {"brand": 1}
    assert replace(table, transform=fitted.transform).to_sparse().values().tolist() == [0] * len(table)
