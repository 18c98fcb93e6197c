"""Segments: planted clusters are found, keep their numbers, and are described by what was planted."""

import itertools

import numpy as np
import pandas as pd
import pytest
from bseq_behaviour.insight.segments import PSEUDO_COUNT, adjusted_rand_index, describe_segments, fit_segments
from hypothesis import given, settings
from hypothesis import strategies as st

import bseq_plugin as bseq

clusterings = st.integers(2, 12).flatmap(
    lambda n: st.tuples(*[st.lists(st.integers(0, 3), min_size=n, max_size=n) for _ in range(2)])
)


def planted(n_each=40, n_segments=4, dim=8, seed=0, angle=0.15):
    """(ids, vectors, truth): bundles of directions of different sizes, in any order."""
    random = np.random.default_rng(seed)
    sizes = [n_each + 10 * place for place in range(n_segments)]
    truth = np.repeat(np.arange(n_segments), sizes)
    centres = np.linalg.qr(random.normal(size=(dim, dim)))[0][:n_segments]
    vectors = centres[truth] + angle * random.normal(size=(len(truth), dim))
    vectors *= random.uniform(0.1, 5, size=(len(truth), 1))  # length says nothing
    order = random.permutation(len(truth))
    return np.arange(len(truth))[order] * 7, vectors[order].astype(np.float32), truth[order]


def rotated(vectors, seed=1):
    return vectors @ np.linalg.qr(np.random.default_rng(seed).normal(size=(vectors.shape[1],) * 2))[0].astype(
        np.float32
    )


@settings(deadline=None)
@given(clusterings)
def test_the_rand_index_counts_pairs(both):
    """Hubert and Arabie by a loop over pairs of users."""
    first, second = map(np.array, both)
    pairs = list(itertools.combinations(range(len(first)), 2))
    same_first = [first[i] == first[j] for i, j in pairs]
    same_second = [second[i] == second[j] for i, j in pairs]
    found = sum(a and b for a, b in zip(same_first, same_second, strict=True))
    expected = sum(same_first) * sum(same_second) / len(pairs)
    largest = (sum(same_first) + sum(same_second)) / 2
    wanted = 1.0 if largest == expected else (found - expected) / (largest - expected)
    assert adjusted_rand_index(first, second) == pytest.approx(wanted)


def test_planted_segments_are_found_the_largest_first():
    ids, vectors, truth = planted()
    found = fit_segments(ids, vectors, 4)
    assert adjusted_rand_index(found.segment_U, truth) == 1
    assert (np.diff(np.bincount(found.segment_U)) < 0).all()
    np.testing.assert_array_equal(found.user_ids, ids)
    np.testing.assert_allclose(np.linalg.norm(found.centres_CD, axis=1), 1, atol=1e-5)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(found.distance_U, 1 - (unit * found.centres_CD[found.segment_U]).sum(1), atol=1e-5)


def test_a_refresh_by_a_model_with_other_axes_keeps_the_numbers():
    ids, vectors, _ = planted(angle=0.35)
    before = fit_segments(ids, vectors, 4)
    fewer = np.random.default_rng(3).permutation(len(ids))[:-30]  # others leave, and one comes
    again_ids, again = np.append(ids[fewer], 10_001), np.concatenate([vectors[fewer], vectors[:1]])
    after = fit_segments(again_ids, rotated(again), 4, previous=before.frame(), seed=5)
    both = before.frame().merge(after.frame(), on="user_id")
    assert len(both) == len(fewer)
    assert (both["segment_x"] == both["segment_y"]).mean() > 0.97


def test_a_segment_that_lost_its_members_is_filled_again():
    ids, vectors, _ = planted()
    previous = fit_segments(ids, vectors, 4).frame()
    left = previous[previous["segment"] != 2]
    after = fit_segments(ids, vectors, 4, previous=left)
    assert adjusted_rand_index(after.segment_U, previous["segment"].to_numpy()) == 1


def test_descriptions_are_shares_over_shares():
    """Segment 0 has 30 a and 10 b, segment 1 has 10 b, 10 c and 20 events of nothing that is counted."""
    items = np.array([1] * 30 + [2] * 10 + [2] * 10 + [3] * 10 + [0] * 20)
    log = bseq.Sequences(np.arange(2), np.array([0, 40, 80]), items)
    code_V, names = np.array([-1, 0, 1, 2]), np.array(["a", "b", "c"], object)
    found = describe_segments(log, np.array([0, 1]), 2, code_V, names).set_index(["segment", "name"])
    crowd = {"a": 30 / 60, "b": 20 / 60, "c": 10 / 60}
    for segment, name, count, total in ((0, "a", 30, 40), (1, "b", 10, 20), (1, "c", 10, 20)):
        share = (count + PSEUDO_COUNT * crowd[name]) / (total + PSEUDO_COUNT)
        assert found.loc[(segment, name), "share"] == pytest.approx(share)
        assert found.loc[(segment, name), "lift"] == pytest.approx(share / crowd[name])
    assert set(found.index) == {(0, "a"), (1, "b"), (1, "c")}  # nothing below the crowd's share
    assert found.loc[(1, "c"), "rank"] == 1


def test_what_can_not_be_segmented():
    ids, vectors, _ = planted()
    with pytest.raises(bseq.UsageError, match="from 1 to the number of users"):
        fit_segments(ids, vectors, len(ids) + 1)
    with pytest.raises(bseq.UsageError, match="from 1"):
        fit_segments(ids, vectors, 0)
    bad = vectors.copy()
    bad[3], bad[5, 0] = 0, np.nan
    with pytest.raises(bseq.SchemaError, match="vectors of 2 users"):
        fit_segments(ids, bad, 2)
    old = fit_segments(ids, vectors, 4).frame()
    with pytest.raises(bseq.UsageError, match="numbered 0..3, asked are 3"):
        fit_segments(ids, vectors, 3, previous=old)
    with pytest.raises(bseq.UsageError, match="no user"):
        fit_segments(ids + 1, vectors, 4, previous=old)
    with pytest.raises(bseq.UsageError, match="user_id and segment"):
        fit_segments(ids, vectors, 4, previous=old.rename(columns={"segment": "cluster"}))
    with pytest.raises(bseq.UsageError, match="same two users or more"):
        adjusted_rand_index(np.zeros(3), np.zeros(2))
    assert fit_segments(ids[:3], vectors[:3], 3).n_segments == 3


def test_the_command_keeps_numbers_between_refreshes(command, habit_run, habit_items, tmp_path):
    pytest.importorskip("matplotlib")
    habit_items.to_parquet(tmp_path / "items.parquet")
    how = ["--segments", 4, "--items", tmp_path / "items.parquet", "--category", "group"]
    first, second = tmp_path / "first.parquet", tmp_path / "second.parquet"
    code, printed, err = command("segments", habit_run.path, "--out", first, *how, "--picture", tmp_path / "s.png")
    assert code == 0, err
    assert all(f"g{group}" in printed for group in range(4))
    assert (tmp_path / "s.png").read_bytes()[:4] == b"\x89PNG"
    code, _, err = command("segments", habit_run.path, "--out", second, *how, "--previous", first, "--seed", 9)
    assert code == 0, err
    assert "adjusted Rand index" in err
    a, b = pd.read_parquet(first), pd.read_parquet(second)
    assert (a["segment"] == b["segment"]).mean() > 0.9
    # everybody keeps to a group of items, and the segments are those groups
    assert adjusted_rand_index(a["segment"].to_numpy(), a["user_id"].to_numpy() % 4) > 0.8
    code, _, err = command("segments", habit_run.path, "--out", tmp_path / "no.parquet", "--category", "group")
    assert code == 2
    assert "needs an items table" in err
