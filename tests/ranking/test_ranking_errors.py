"""Wrong use: the class of the error, and that its text names the value and the remedy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from bseq_plugin import (
    Events,
    FeatureSpec,
    PluginError,
    RankingFeature,
    SchemaError,
    Sequences,
    UsageError,
    ranking_features,
)
from bseq_plugin.testing.ranking_features import NOW, NOW_US, log, manager_with, mean_model

ROWS = pd.DataFrame({"user_id": [1, 2], "item_id": [101, 102]})
LOG = log([(1, 100, -10.0), (1, 101, -5.0), (2, 103, -7.0)])
SEQUENCES = Sequences.from_events(LOG, mean_model().vocabulary)


@pytest.mark.parametrize(
    ("candidates", "at", "error", "text"),
    [
        (ROWS[:0], NOW, UsageError, "no candidates"),
        (ROWS.drop(columns="item_id"), NOW, SchemaError, r"lack column 'item_id'; found \['user_id'\]"),
        (ROWS.assign(user_id=[1, None]), NOW, SchemaError, "column 'user_id' has a null in row 1"),
        (ROWS.assign(item_id=[-1, 2]), NOW, SchemaError, "id -1 in row 0"),
        (ROWS.assign(item_id=["a", "b"]), NOW, SchemaError, "item ids holds text, .*here are integers"),
        (ROWS.assign(user_id=["a", "b"]), NOW, SchemaError, "user_id holds text.*here are integers, for example 1"),
        (ROWS.assign(score=["high", "low"]), NOW, SchemaError, "column 'score' must hold numbers"),
        (ROWS.assign(rank=[1.0, np.inf]), NOW, SchemaError, "column 'rank' has inf in row 1"),
        (ROWS, None, UsageError, "say for which instant"),
        (ROWS.assign(at=NOW), NOW, UsageError, "pass at=None or drop the column"),
        (ROWS, "2024-05-01T12:00:00", SchemaError, "has no time zone; write for example 2024-05-01T12:00:00"),
        (ROWS, "yesterday evening", SchemaError, "is not a time"),
        (
            ROWS.assign(at=NOW.tz_localize(None)),
            None,
            SchemaError,
            "'at' has dtype datetime64.*needs times with a time",
        ),
        (ROWS.assign(at=[NOW, pd.NaT]), None, SchemaError, "null in row 1"),
        (ROWS.assign(at=NOW_US), None, SchemaError, "'at' has dtype int64"),
    ],
)
def test_candidates(candidates, at, error, text, manager):
    with pytest.raises(error, match=text):
        ranking_features(candidates, LOG, at, model=mean_model(), manager=manager)


@pytest.mark.parametrize(
    ("events", "error", "text"),
    [
        (Events.in_order(np.array([1, 1]), np.array([100, 101])), SchemaError, "have no times"),
        (replace(SEQUENCES, timestamps=None), SchemaError, "have no times"),
        (replace(SEQUENCES, timestamps=SEQUENCES.timestamps[[1, 0, 2]]), SchemaError, "user 1 .* not oldest first"),
        (SEQUENCES.take(np.array([0, 1, 0])), SchemaError, "user 1 stands twice"),
        (replace(SEQUENCES, items=SEQUENCES.items + 8), UsageError, "item row 12, the model's vocabulary ends at 8"),
        (LOG.frame, UsageError, "events is a DataFrame; read it first"),
    ],
)
def test_events(events, error, text, manager):
    with pytest.raises(error, match=text):
        ranking_features(ROWS, events, NOW, model=mean_model(), manager=manager)


def test_a_model_of_the_future_is_refused(manager):
    def features(until, **kwargs):
        candidates = ROWS.assign(at=[NOW, NOW + pd.Timedelta(1, "D")])
        model = replace(mean_model(), trained_until_us=until)
        return ranking_features(candidates, LOG, model=model, manager=manager, **kwargs)

    with pytest.raises(UsageError, match=r"until 2024-05-01T12:00:00\+00:00, not before at = 2024-05-01T12:00:00"):
        features(NOW_US)
    with pytest.raises(UsageError, match="does not tell until when"):
        features(None)
    assert len(features(NOW_US - 1)) == len(features(NOW_US, allow_future_model=True)) == 2
    assert len(features(None, allow_future_model=True)) == 2


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"item_vectors_VD": torch.zeros(8, 6)}, r"shape \(8, 6\); its vocabulary of 8 items needs"),
        ({"encode": lambda histories, wide: torch.zeros(2, 6)}, r"gave shape \(2, 6\), not \[2, K, 6\]"),
        ({"encode": lambda histories, wide: torch.zeros(2, 0, 6)}, r"gave shape \(2, 0, 6\)"),
        ({"encode": lambda histories, wide: torch.zeros(2, 1, 5)}, r"gave shape \(2, 1, 5\)"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(wrong, text, manager):
    model = mean_model()
    for name, value in wrong.items():
        object.__setattr__(model, name, value)
    with pytest.raises(PluginError, match=text):
        ranking_features(ROWS, LOG, NOW, model=model, manager=manager)


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (lambda n: torch.zeros(n, dtype=torch.float64), "'bad' gave torch.float64; it has to be a float32 tensor"),
        (lambda n: [0.0] * n, "'bad' gave list"),
        (lambda n: torch.zeros(n + 1), r"'bad' gave shape \(2,\), not \[1\] or \[1, width\]"),
        (lambda n: torch.zeros(n, 0), "'bad' gave shape"),
        (lambda n: torch.full((n,), torch.inf), "'bad' gave an infinite value"),
        (lambda n: torch.zeros(n)[5], "'bad' failed: IndexError"),
    ],
)
def test_what_a_plugins_feature_returns_is_checked(result, text):
    class Bad(RankingFeature):
        name = "bad"
        description = "wrong"

        def compute(self, inputs):
            return result(inputs.candidate_N.shape[0])

    with pytest.raises(PluginError, match=text):
        ranking_features(ROWS[:1], LOG, NOW, FeatureSpec(names=("bad",)), model=mean_model(), manager=manager_with(Bad))


def test_a_width_that_changes_between_blocks_is_refused():
    class Ragged(RankingFeature):
        name = "ragged"
        description = "wrong"

        def compute(self, inputs):
            return torch.zeros(1, int(inputs.items_T.shape[0]))

    spec = FeatureSpec(names=("ragged",))
    with pytest.raises(PluginError, match=r"'ragged' gave float32 \(1,\) and float32 \(2,\) a row"):
        ranking_features(ROWS, LOG, NOW, spec, model=mean_model(), manager=manager_with(Ragged), block_numbers=1)


def test_block_numbers_below_one_is_refused(manager):
    with pytest.raises(UsageError, match="block_numbers = 0"):
        ranking_features(ROWS, LOG, NOW, model=mean_model(), manager=manager, block_numbers=0)
