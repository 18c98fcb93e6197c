"""The blend: against a loop, as a law (the served top k is the top k of all items), and its settings."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from instants import DAY_US

from bseq_plugin import Blend, Sequences, UsageError
from bseq_plugin.serving.blend import blend_scores, history_scores


def loop_scores(histories, at_B, half_life_days):
    scores = {}
    for user in range(histories.n_users):
        for place in range(histories.offsets[user], histories.offsets[user + 1]):
            item = int(histories.items[place])
            if item:
                age = 0 if at_B is None else (at_B[user] - histories.timestamps[place]) / DAY_US
                scores[user, item] = scores.get((user, item), 0) + 0.5 ** (age / half_life_days)
    return {key: math.log1p(value) for key, value in scores.items()}


@settings(deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 50)), max_size=8), max_size=5), st.booleans())
def test_history_scores_equal_a_loop(users, timed):
    flat = [event for events in users for event in sorted(events, key=lambda e: e[1])]
    offsets = np.concatenate([[0], np.cumsum([len(events) for events in users])]).astype(np.int64)
    items = np.array([e[0] for e in flat], np.int64)
    times = np.array([e[1] for e in flat], np.int64) * DAY_US if timed else None
    histories = Sequences(np.arange(len(users)), offsets, items, times)
    at_B = np.arange(len(users)) * DAY_US + 60 * DAY_US if timed else None
    found = history_scores(histories, at_B, 7.0)
    wanted = loop_scores(histories, at_B, 7.0)
    assert list(zip(found.users_P, found.items_P, strict=True)) == sorted(wanted)
    np.testing.assert_allclose(found.scores_P, [wanted[key] for key in sorted(wanted)], rtol=1e-6)


def test_one_instant_for_all_is_the_same_as_one_each():
    histories = Sequences(np.arange(2), np.array([0, 2, 3]), np.array([1, 2, 1]), np.array([0, 1, 2]) * DAY_US)
    one, each = history_scores(histories, 9 * DAY_US, 3.0), history_scores(histories, np.full(2, 9 * DAY_US), 3.0)
    np.testing.assert_array_equal(one.scores_P, each.scores_P)


def test_blend_works_on_arrays_and_tensors():
    weights = Blend(interest=2.0, history=3.0)
    assert blend_scores(np.array([1.0, 2.0]), np.array([0.0, 1.0]), weights).tolist() == [2.0, 7.0]
    recent = Blend(interest=2.0, history=3.0, recent=10.0)
    assert blend_scores(np.array([1.0, 2.0]), np.array([0.0, 1.0]), recent, np.array([0.0, 0.5])).tolist() == [
        2.0,
        12.0,
    ]
    assert blend_scores(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0]), weights).tolist() == [2.0, 7.0]


def test_weights_survive_a_file(tmp_path):
    weights = Blend(0.25, 1.5, 14.0, 0.5, 3.0)
    weights.save(tmp_path / "blend.json")
    assert Blend.load(tmp_path / "blend.json") == weights


@pytest.mark.parametrize(
    "values",
    [
        {"interest": -1},
        {"history": math.nan},
        {"half_life_days": 0},
        {"recent": -1},
        {"recent_half_life_days": 0},
        {"interest": "1"},
    ],
)
def test_weights_out_of_range_are_refused(values):
    with pytest.raises(UsageError, match="blend weight"):
        Blend(**values)


@pytest.mark.parametrize("text", ["", "[]", '{"interst": 1}', '{"interest": null}'])
def test_an_unusable_file_is_refused(tmp_path, text):
    (tmp_path / "blend.json").write_text(text)
    with pytest.raises(UsageError):
        Blend.load(tmp_path / "blend.json")
