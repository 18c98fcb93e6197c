"""Laws of the engine: the future, the order of rows and the size of blocks change no byte."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bseq_plugin import Events, FeatureSpec, RankingFeature, Sequences, Vocabulary, ranking_features
from bseq_plugin.ranking.features import FEATURES
from bseq_plugin.testing.ranking_features import NOW, log, manager_with, mean_model

MANAGER = manager_with(*FEATURES)
EVENT = st.tuples(st.integers(1, 4), st.integers(99, 109), st.integers(-20, 20))
EVENTS = st.lists(EVENT, min_size=1, max_size=30)
ROWS = st.lists(EVENT, min_size=1, max_size=15)


def candidates_of(asked):
    frame = pd.DataFrame(asked, columns=["user_id", "item_id", "at"])
    frame["at"] = NOW + pd.to_timedelta(frame["at"], unit="s")
    return frame


def features(candidates, events, at=None, n_interests=3, **kwargs):
    return ranking_features(candidates, events, at, model=mean_model(n_interests), manager=MANAGER, **kwargs)


def same_bytes(a, b):
    assert a.names == b.names
    for name in a.names:
        assert a.columns[name].tobytes() == b.columns[name].tobytes(), name


@settings(max_examples=40, deadline=None)
@given(EVENTS, ROWS, st.randoms(use_true_random=False))
def test_adding_permuting_and_deleting_the_future_changes_no_byte(rows, asked, random):
    candidates = candidates_of(asked)
    latest = max(seconds for _, _, seconds in asked)
    past, future = [r for r in rows if r[2] < latest], [r for r in rows if r[2] >= latest]
    wanted = features(candidates, log([*past, (1, 100, latest)]))
    shuffled = random.sample(future, len(future))
    same_bytes(features(candidates, log(rows)), wanted)
    same_bytes(features(candidates, log([*shuffled, *past, (2, 104, latest)])), wanted)


@settings(max_examples=40, deadline=None)
@given(EVENTS, ROWS)
def test_the_future_of_each_row_alone_changes_no_byte(rows, asked):
    """Rows at several instants: each sees what it would see in a log that ends at its own ``at``."""
    candidates = candidates_of(asked)
    table = features(candidates, log(rows))
    for row, (_, _, seconds) in enumerate(asked):
        past = [r for r in rows if r[2] < seconds] + [(7, 100, seconds)]
        alone = features(candidates[row : row + 1], log(past))
        for name in table.names:
            assert table.columns[name][row].tobytes() == alone.columns[name][0].tobytes(), name


def test_an_event_exactly_at_the_instant_is_excluded():
    candidates = candidates_of([(1, 103, 0)]).drop(columns="at")
    exact = log([(1, 103, 0.0)])
    assert np.isnan(features(candidates, exact, NOW).columns["hist_sim_max"]).all()
    later = features(candidates, exact, NOW + pd.Timedelta(1, "us"))
    np.testing.assert_allclose(later.columns["hist_sim_max"], 1, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(EVENTS, ROWS, st.randoms(use_true_random=False))
def test_permuting_the_rows_permutes_the_output(rows, asked, random):
    candidates, events = candidates_of(asked), log(rows)
    order = random.sample(range(len(asked)), len(asked))
    table, permuted = features(candidates, events), features(candidates.iloc[order], events)
    for name in table.names:
        assert permuted.columns[name].tobytes() == table.columns[name][order].tobytes(), name
    pd.testing.assert_frame_equal(permuted.to_pandas(), table.to_pandas().iloc[order].reset_index(drop=True))


def big():
    """Histories of 0 to 300 events, and 0 to 90 candidates of 40 users at one instant, doubles among them."""
    random = np.random.default_rng(0)
    users = np.repeat(np.arange(40), random.integers(0, 300, 40))
    rows = list(zip(users, random.integers(99, 120, len(users)), random.uniform(-5000, 100, len(users)), strict=True))
    asked = np.repeat(np.arange(40), random.integers(0, 90, 40))
    candidates = pd.DataFrame({"user_id": asked, "item_id": random.integers(99, 110, len(asked))})
    return candidates.sample(frac=1, random_state=0), log(rows)


@pytest.mark.parametrize("block_numbers", [1, 97, 5_000, 100_000])
def test_blocks_of_any_size_give_the_same_bytes(block_numbers):
    candidates, events = big()
    same_bytes(features(candidates, events, NOW, block_numbers=block_numbers), features(candidates, events, NOW))


def test_equal_rows_are_kept_and_have_equal_values():
    candidates, events = big()
    frame = features(pd.concat([candidates, candidates]), events, NOW).to_pandas()
    half = len(candidates)
    assert len(frame) == 2 * half
    pd.testing.assert_frame_equal(frame[:half], frame[half:].reset_index(drop=True))


def test_threads_do_not_change_a_byte():
    candidates, events = big()
    one = features(candidates, events, NOW)
    torch.set_num_threads(2)
    try:
        same_bytes(features(candidates, events, NOW), one)
    finally:
        torch.set_num_threads(1)


def test_sequences_do_as_well_as_events():
    candidates, events = big()
    sequences = Sequences.from_events(events, mean_model().vocabulary)
    same_bytes(features(candidates, sequences, NOW), features(candidates, events, NOW))


def test_a_column_of_instants_equals_the_argument_in_any_time_zone():
    candidates, events = big()
    wanted = features(candidates, events, NOW)
    same_bytes(features(candidates, events, "2024-05-01T14:00:00+02:00"), wanted)
    for zone in ("UTC", "Asia/Kolkata"):
        same_bytes(features(candidates.assign(at=NOW.tz_convert(zone)), events), wanted)
    assert (wanted.to_pandas()["event_timestamp"] == NOW).all()


def test_equal_times_keep_the_order_of_the_log():
    candidates = pd.DataFrame({"user_id": [1], "item_id": [105]})
    first = features(candidates, log([(1, 105, -1.0), (1, 101, -1.0)]), NOW).columns["sim_last1"][0]
    last = features(candidates, log([(1, 101, -1.0), (1, 105, -1.0)]), NOW).columns["sim_last1"][0]
    assert last > 1 - 1e-6
    assert first < 0.999


def test_unknown_users_and_items_are_null_and_only_there():
    candidates = pd.DataFrame({"user_id": [1, 1, 77, 3], "item_id": [101, 555, 101, 101]})
    events = log([(1, 102, -5.0), (3, 999, -5.0)])  # user 3 has only an event of an unknown item
    table = features(candidates, events, NOW, n_interests=1)
    nulls = {name: table.isnull(name).tolist() for name in table.names}
    user, item = [False, False, True, True], [False, True, False, False]
    assert nulls.pop("interest_mask") == [False] * 4
    assert table.columns["interest_mask"][:, 0].tolist() == [1, 1, 0, 0]
    assert nulls.pop("user_interests") == nulls.pop("user_pooled") == user
    assert nulls.pop("item_vec") == item
    assert nulls.pop("sim_top2_gap") == [True] * 4
    groups = {name: part.group for part in FeatureSpec().parts(MANAGER) for name in part.columns(("buy", "click"))}
    of_both = {name for name, group in groups.items() if group in ("similarity", "history")} & set(nulls)
    never_skipped, no_buys = {"neg_sim_skip"}, {"sim_buy_centroid"}  # the log has clicks only for user 1
    assert {tuple(nulls[name]) for name in of_both - never_skipped - no_buys} == {(False, True, True, True)}
    assert {tuple(nulls[name]) for name in never_skipped | no_buys} == {(True,) * 4}
    frame = table.to_pandas()
    assert frame["is_cold_user"].tolist() == [0, 0, 1, 1]
    assert frame["is_cold_item"].tolist() == [0, 1, 0, 0]
    assert frame["n_events"].tolist() == [1, 1, 0, 1]
    np.testing.assert_array_equal(frame["n_same_item"], [0, np.nan, 0, 0])
    np.testing.assert_array_equal(frame["interest_age_secs"], [5, 5, np.nan, np.nan])


def test_a_log_without_any_of_the_users_gives_nulls():
    candidates = pd.DataFrame({"user_id": [5], "item_id": [101]})
    for events in (log([(1, 102, -5.0)]), log([(5, 102, 5.0)])):
        assert np.isnan(features(candidates, events, NOW).columns["sim_max"]).all()


def test_ids_may_be_strings():
    vocabulary = Vocabulary(np.array(["é", "ß", "z"], dtype=object), np.ones(3, np.int64))
    model = replace(mean_model(1), vocabulary=vocabulary, item_vectors_VD=torch.eye(4))
    frame = pd.DataFrame({"user_id": ["ö", "p"], "item_id": ["é", "z"], "timestamp": NOW - pd.Timedelta(1, "s")})
    candidates = pd.DataFrame({"user_id": ["p", "ö", "q"], "item_id": ["z", "ß", "é"]})
    table = ranking_features(candidates, Events.from_frame(frame), NOW, model=model, manager=MANAGER)
    np.testing.assert_array_equal(table.columns["sim_max"], [1, 0, np.nan])
    assert table.to_arrow()["user_id"].to_pylist() == ["p", "ö", "q"]


def test_stale_history_counts_as_none():
    candidates = pd.DataFrame({"user_id": [1, 2], "item_id": [101, 101]})
    events = log([(1, 102, -86_400.0), (2, 102, -86_400.000001), (2, 103, -90_000.0)])
    table = features(candidates, events, NOW, features=FeatureSpec(ttl_days=1))
    assert table.isnull("sim_max").tolist() == table.isnull("hist_sim_mean").tolist() == [False, True]


class RankAndTypes(RankingFeature):
    """What a plugin might make of retrieval's columns and of event types."""

    name = "rank_and_types"
    description = "the retriever's rank, the number of events, the number of clicks, [3]"

    def compute(self, inputs):
        """float32 [N, 3]."""
        clicks_R = torch.bincount(inputs.request_T[inputs.event_types_T == 2], minlength=len(inputs.at_R))
        counts_R2 = torch.stack([inputs.lengths_R, clicks_R], 1).float()
        return torch.cat([inputs.retrieval_rank_N[:, None], counts_R2[inputs.request_N]], 1)


def test_a_plugins_feature_stands_beside_ours():
    candidates = pd.DataFrame(
        {"user_id": [1, 2], "item_id": [101, 101], "rank": [4, None], "score": 1.0, "interest": 0}
    )
    events = log([(1, 102, -5.0), (1, 103, -4.0), (1, 104, -3.0), (2, 101, -2.0)])
    spec = FeatureSpec(names=("sim_max", "rank_and_types"), history_length=2)
    manager = manager_with(*FEATURES, RankAndTypes)
    table = ranking_features(candidates, events, NOW, spec, model=mean_model(), manager=manager, block_numbers=1)
    assert table.names == ["sim_max", "rank_and_types"]
    np.testing.assert_array_equal(table.columns["rank_and_types"], [[4, 2, 1], [np.nan, 1, 0]])
