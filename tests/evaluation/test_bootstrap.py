import numpy as np
import pytest

from bseq_plugin import UsageError
from bseq_plugin.evaluation import bootstrap
from bseq_plugin.evaluation.bootstrap import bootstrap_interval, bootstrap_intervals


def test_interval_of_a_normal_mean_is_the_textbook_one():
    values = np.random.default_rng(0).normal(3.0, 2.0, 4000)
    low, high = bootstrap_interval(values, n_resamples=4000)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=half / 10)
    assert high == pytest.approx(values.mean() + half, abs=half / 10)


def test_all_samples_of_two_users():
    # means of a resample of {0, 1}: 0, 1/2, 1 with probability 1/4, 1/2, 1/4
    assert bootstrap_interval(np.array([0.0, 1.0]), 2000, level=0.95) == (0.0, 1.0)
    assert bootstrap_interval(np.array([0.0, 1.0]), 2000, level=0.40) == (0.5, 0.5)
    assert bootstrap_interval(np.array([0.25]), 10) == (0.25, 0.25)


def test_pairing_sees_a_difference_that_two_intervals_hide():
    generator = np.random.default_rng(1)
    hard = generator.normal(0, 10, 500)
    model, baseline = hard + 0.2 + generator.normal(0, 0.1, 500), hard
    low, high = bootstrap_interval(model - baseline)
    assert 0 < low < 0.2 < high
    assert bootstrap_interval(model)[0] < bootstrap_interval(baseline)[1]
    assert bootstrap_interval(baseline - baseline) == (0.0, 0.0)


def test_columns_share_the_draws_and_chunks_do_not_matter(monkeypatch):
    values = np.random.default_rng(2).random((50, 3))
    together = bootstrap_intervals(values, 200, seed=7)
    for column in range(3):
        np.testing.assert_allclose(together[column], bootstrap_interval(values[:, column], 200, seed=7))
    monkeypatch.setattr(bootstrap, "CHUNK_DRAWS", 333)
    np.testing.assert_allclose(bootstrap_intervals(values, 200, seed=7), together)
    assert not np.allclose(bootstrap_intervals(values, 200, seed=8), together)


def test_wrong_use_is_told():
    with pytest.raises(UsageError, match="0 users"):
        bootstrap_interval(np.array([]))
    with pytest.raises(UsageError, match=r"level = 1\.5"):
        bootstrap_interval(np.ones(3), level=1.5)
