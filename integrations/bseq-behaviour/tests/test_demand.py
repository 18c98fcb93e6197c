"""Demand: counts against a loop, rates that were planted, and what can't be forecast."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from bseq_behaviour.demand.demand import DemandRows, fit_demand, user_demand, wape
from bseq_behaviour.demand.forecast_demand import forecast_demand
from bseq_behaviour.propensity.labels import weekly_demand

import bseq_plugin as bseq

WEEK_US = 7 * 86_400_000_000


def test_demand_of_users_adds_up_to_the_demand_of_all():
    random = np.random.default_rng(0)
    lengths = random.integers(0, 30, 9)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    times = np.concatenate([np.sort(random.integers(0, 4 * WEEK_US, n)) for n in lengths])
    log = bseq.Sequences(np.arange(9), offsets, random.integers(0, 6, offsets[-1]), times)
    category_V = np.array([-1, 0, 1, 2, 0, -1])
    found = user_demand(log, category_V, 3, WEEK_US, 2)
    for user in range(9):
        own = slice(offsets[user], offsets[user + 1])
        inside = (times[own] >= WEEK_US) & (times[own] < 3 * WEEK_US)
        for category in range(3):
            assert found[user, category] == (category_V[log.items[own]][inside] == category).sum()
    np.testing.assert_array_equal(found.sum(0), weekly_demand(log, category_V, 3, WEEK_US, 2).sum(1))


def planted(n, seed):
    """Category 0 repeats what was taken, category 1 follows the vector, category 2 is the same for everybody."""
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(n, 4)).astype(np.float32)
    recent = random.gamma(1.0, 2.0, size=(n, 3)).astype(np.float32)
    rates = np.stack([0.9 * recent[:, 0] + 0.05, np.exp(vectors[:, 1]), np.full(n, 2.0)], axis=1)
    return DemandRows(vectors, recent, random.poisson(rates).astype(np.float32)), rates


def test_planted_rates_are_found():
    (train, _), (validation, _), (test, rates) = planted(4000, 0), planted(1000, 1), planted(1000, 2)
    model = fit_demand(train, validation)
    found = model.rates(test.vectors_ND, test.recent_NC)
    for category in range(2):
        assert np.corrcoef(found[:, category], rates[:, category])[0, 1] > 0.9
    assert found[:, 2].mean() == pytest.approx(2.0, rel=0.1)
    np.testing.assert_allclose(found.sum(0), rates.sum(0), rtol=0.1)
    np.testing.assert_array_equal(fit_demand(train, validation).rates(test.vectors_ND, test.recent_NC), found)


def test_wape_by_hand():
    assert wape(np.array([[3.0, 0.0], [1.0, 6.0]]), np.array([[2.0, 1.0], [1.0, 9.0]])) == pytest.approx(5 / 10)
    with pytest.raises(bseq.UsageError, match="0 units"):
        wape(np.zeros((1, 2), int), np.ones((1, 2)))
    with pytest.raises(bseq.UsageError, match="forecast"):
        wape(np.ones((1, 2)), np.ones((2, 1)))


def test_nothing_to_learn_from():
    (rows, _) = planted(10, 0)
    nothing = DemandRows(rows.vectors_ND, rows.recent_NC, np.zeros_like(rows.units_NC))
    with pytest.raises(bseq.SchemaError, match="choose other weeks"):
        fit_demand(rows, nothing)
    with pytest.raises(bseq.SchemaError, match="choose other weeks"):
        fit_demand(DemandRows(rows.vectors_ND[:0], rows.recent_NC[:0], rows.units_NC[:0]), rows)


@pytest.fixture(scope="module")
def model(habit_run):
    return bseq.InterestModel.from_run(habit_run.path)


@pytest.fixture(scope="module")
def group_V(model):
    return np.concatenate([[-1], model.vocabulary.item_ids // 10])


def test_a_forecast_of_steady_habits(model, habit_run, group_V):
    """Groups 0 to 2 are bought every other day by everybody who began; in group 3 people stop, and fewer are left."""
    log = habit_run.sequences()
    found = forecast_demand(model, log, group_V, 4)
    assert found.at_us == int(log.timestamps.max()) + 1
    past = weekly_demand(log, group_V, 4, found.at_us - 3 * WEEK_US, 3)
    np.testing.assert_array_equal(found.before_C, past[:, 2])
    np.testing.assert_allclose(found.units_C[:3], past[:3].mean(1), rtol=0.4)  # some hundred units, some thirty users
    assert found.wape < found.naive_wape
    assert found.naive_wape == pytest.approx(np.abs(past[:, 2] - past[:, 1]).sum() / past[:, 2].sum())
    assert found.n_weeks == 3  # of the four complete ones after the training, one is for judging


def test_a_forecast_knows_nothing_of_the_future(model, habit_run, group_V):
    log = habit_run.sequences()
    at_us = int(log.timestamps.max()) - WEEK_US
    whole, cut = (forecast_demand(model, one, group_V, 4, at_us) for one in (log, log.between(None, at_us)))
    np.testing.assert_array_equal(whole.units_C, cut.units_C)
    assert whole.wape == cut.wape


def test_what_no_forecast_can_be_made_of(model, habit_run, group_V):
    log = habit_run.sequences()
    with pytest.raises(bseq.SchemaError, match="two weeks are"):
        forecast_demand(model, log, group_V, 4, model.trained_until_us + 2 * WEEK_US)
    forecast_demand(model, log, group_V, 4, model.trained_until_us + 2 * WEEK_US, allow_future_model=True)
    with pytest.raises(bseq.SchemaError, match="nobody has an event before"):
        forecast_demand(model, log, group_V, 4, int(log.timestamps.min()))
    with pytest.raises(bseq.SchemaError, match="log with times"):
        forecast_demand(model, replace(log, timestamps=None), group_V, 4)
    with pytest.raises(bseq.SchemaError, match="choose other weeks"):
        forecast_demand(model, log, np.full_like(group_V, -1), 4)


def test_the_demand_command(command, habit_run, habit_items, tmp_path):
    habit_items.to_parquet(tmp_path / "items.parquet")
    out, told = tmp_path / "demand.parquet", tmp_path / "errors.json"
    asked = ["demand", habit_run.path, "--items", tmp_path / "items.parquet", "--category"]
    code, printed, err = command(*asked, "group", "--out", out, "--json", told)
    assert code == 0, err
    assert "g1" in printed
    frame = pd.read_parquet(out)
    assert list(frame.columns) == ["category", "week", "units", "week_before"]
    assert sorted(frame["category"]) == ["g0", "g1", "g2", "g3"]
    assert json.loads(told.read_text())["units"] == pytest.approx(frame["units"].sum(), rel=1e-5)
    code, _, err = command(*asked, "colour", "--out", tmp_path / "no.parquet")
    assert code == 2
    assert "'colour' needs an items table" in err
    assert not (tmp_path / "no.parquet").exists()


def test_an_instant_after_the_log_is_refused(model, habit_run, group_V):
    """A week without events would be taken for one in which nothing was bought."""
    log = habit_run.sequences()
    late_us = int(log.timestamps.max()) + WEEK_US
    with pytest.raises(bseq.UsageError, match="more than a day after the newest event"):
        forecast_demand(model, log, group_V, 4, late_us)
