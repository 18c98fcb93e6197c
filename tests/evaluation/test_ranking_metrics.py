import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bseq_plugin import UsageError, ranking_metrics


def naive(top, wanted, k):
    """The definitions, one user at a time."""
    hits = [1.0 if row > 0 and row in wanted else 0.0 for row in top[:k]]
    ideal = sum(1 / np.log2(r + 1) for r in range(1, min(k, len(wanted)) + 1))
    first = next((r for r, hit in enumerate(hits, 1) if hit), None)
    return {
        "recall": sum(hits) / min(k, len(wanted)),
        "ndcg": sum(hit / np.log2(r + 1) for r, hit in enumerate(hits, 1)) / ideal,
        "mrr": 1 / first if first else 0.0,
        "hit": 1.0 if first else 0.0,
    }


def test_written_out():
    # user 0: targets 5 and 7, found at places 2 and 4; user 1: one target, nothing found
    top = np.array([[1, 5, 2, 7], [1, 2, 3, -1]])
    got = ranking_metrics(top, np.array([0, 2, 3]), np.array([7, 5, 9]), (3, 4))
    np.testing.assert_allclose(got["recall@3"], [1 / 2, 0])
    np.testing.assert_allclose(got["recall@4"], [1, 0])
    np.testing.assert_allclose(got["ndcg@3"], [(1 / np.log2(3)) / (1 + 1 / np.log2(3)), 0])
    np.testing.assert_allclose(got["ndcg@4"], [(1 / np.log2(3) + 1 / np.log2(5)) / (1 + 1 / np.log2(3)), 0])
    np.testing.assert_allclose(got["mrr@4"], [1 / 2, 0])
    np.testing.assert_allclose(got["hit@3"], [1, 0])


def test_recall_is_divided_by_what_fits():
    top = np.array([[1, 2]])
    got = ranking_metrics(top, np.array([0, 4]), np.array([1, 2, 3, 4]), (2,))
    assert got["recall@2"] == got["ndcg@2"] == 1.0


@st.composite
def cases(draw):
    users, places, items = draw(st.integers(1, 6)), draw(st.integers(1, 6)), 8
    top = [draw(st.permutations(range(1, items + 1)))[:places] for _ in range(users)]
    for row in top:
        cut = draw(st.integers(0, places))
        row[cut:] = [-1] * (places - cut)
    wanted = [draw(st.lists(st.integers(1, items + 3), min_size=1, max_size=9, unique=True)) for _ in range(users)]
    return np.array(top), wanted, draw(st.lists(st.integers(1, places), min_size=1, max_size=3, unique=True))


@given(cases())
@settings(max_examples=200, deadline=None)
def test_agrees_with_the_loop(case):
    top, wanted, ks = case
    offsets = np.concatenate([[0], np.cumsum([len(w) for w in wanted])])
    got = ranking_metrics(top, offsets, np.array([i for w in wanted for i in w]), ks)
    for k in ks:
        for n, row in enumerate(top.tolist()):
            for name, value in naive(row, wanted[n], k).items():
                assert got[f"{name}@{k}"][n] == pytest.approx(value, abs=1e-12)
    assert all(v.dtype == np.float64 and v.shape == (len(top),) for v in got.values())
    assert all(((v >= 0) & (v <= 1 + 1e-12)).all() for v in got.values())


def test_permuting_users_permutes_values():
    top = np.array([[1, 2], [3, 4], [5, 6]])
    got = ranking_metrics(top, np.array([0, 1, 2, 3]), np.array([2, 3, 9]), (2,))
    swapped = ranking_metrics(top[[2, 0, 1]], np.array([0, 1, 2, 3]), np.array([9, 2, 3]), (2,))
    for name, values in got.items():
        np.testing.assert_array_equal(swapped[name], values[[2, 0, 1]])


def test_wrong_use_is_told():
    top = np.array([[1, 2]])
    with pytest.raises(UsageError, match="each with a target"):
        ranking_metrics(top, np.array([0, 0]), np.array([], dtype=np.int64), (1,))
    with pytest.raises(UsageError, match="1 users are ranked"):
        ranking_metrics(top, np.array([0, 1, 2]), np.array([1, 1]), (1,))
    for ks in [(), (0,), (3,)]:
        with pytest.raises(UsageError, match="cut-offs lie between 1 and the 2"):
            ranking_metrics(top, np.array([0, 1]), np.array([1]), ks)
