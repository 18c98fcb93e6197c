"""Demand: counts against a loop, rates that were planted, and what can't be forecast."""

import numpy as np
import pytest

from bseq_plugin.behaviour.demand import DemandRows, fit_demand, user_demand, wape
from bseq_plugin.behaviour.labels import weekly_demand
from bseq_plugin.data.sequences import Sequences
from bseq_plugin.errors import SchemaError, UsageError

WEEK_US = 7 * 86_400_000_000


def test_demand_of_users_adds_up_to_the_demand_of_all():
    random = np.random.default_rng(0)
    lengths = random.integers(0, 30, 9)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    times = np.concatenate([np.sort(random.integers(0, 4 * WEEK_US, n)) for n in lengths])
    log = Sequences(np.arange(9), offsets, random.integers(0, 6, offsets[-1]), times)
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
    with pytest.raises(UsageError, match="0 units"):
        wape(np.zeros((1, 2), int), np.ones((1, 2)))
    with pytest.raises(UsageError, match="forecast"):
        wape(np.ones((1, 2)), np.ones((2, 1)))


def test_nothing_to_learn_from():
    (rows, _) = planted(10, 0)
    nothing = DemandRows(rows.vectors_ND, rows.recent_NC, np.zeros_like(rows.units_NC))
    with pytest.raises(SchemaError, match="choose other weeks"):
        fit_demand(rows, nothing)
    with pytest.raises(SchemaError, match="choose other weeks"):
        fit_demand(DemandRows(rows.vectors_ND[:0], rows.recent_NC[:0], rows.units_NC[:0]), rows)
