"""Filters, -1, several interests: against brute force, for indexes with all the limits a backend can have."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bseq_plugin import IndexCapabilities, PluginError
from bseq_plugin.indexes.exact import ExactIndex
from bseq_plugin.serving import search
from bseq_plugin.serving.hits import ExcludedPairs, Hits
from bseq_plugin.serving.search import search_items


class LimitedIndex(ExactIndex):
    """Exact, but at most 5 hits a search."""

    capabilities = IndexCapabilities(exact=True, max_k=5)

    def search(self, queries_BD, k):
        if k > 5:
            raise AssertionError(f"asked for {k}")
        return super().search(queries_BD, k)


class UnmaskedIndex(ExactIndex):
    """Exact, and asked in excess."""

    capabilities = IndexCapabilities(exact=True)


class BlindIndex(ExactIndex):
    """Approximate at its worst: finds only the best two, then -1."""

    capabilities = IndexCapabilities(exact=False)

    def search(self, queries_BD, k):
        scores_Bk, rows_Bk = super().search(queries_BD, k)
        scores_Bk[:, 2:], rows_Bk[:, 2:] = -torch.inf, -1
        return scores_Bk, rows_Bk


def whole(shape, seed):
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).float()


def brute_force(interests_BKD, vectors_VD, k, excluded_pairs):
    """[(user, row, score, interest)] by sorting every item of every user."""
    answers = []
    for user, interests_KD in enumerate(interests_BKD.double().numpy()):
        scores_VK = vectors_VD.double().numpy() @ interests_KD.T
        allowed = [row for row in range(len(vectors_VD)) if (user, row) not in excluded_pairs]
        best = sorted(allowed, key=lambda row: (-scores_VK[row].max(), row))[:k]
        answers += [(user, row, scores_VK[row].max(), int(scores_VK[row].argmax())) for row in best]
    return answers


def as_tuples(hits):
    return list(zip(hits.users_N, hits.rows_N, hits.scores_N, hits.interests_N, strict=True))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("kind", [ExactIndex, UnmaskedIndex, LimitedIndex, BlindIndex])
def test_equals_brute_force(monkeypatch, kind, data):
    n_users, n_interests, n_items = (data.draw(st.integers(1, m)) for m in (6, 3, 25))
    k, seed = data.draw(st.integers(1, n_items)), data.draw(st.integers(0, 99))
    pairs = data.draw(st.lists(st.tuples(st.integers(0, n_users - 1), st.integers(0, n_items - 1)), max_size=60))
    monkeypatch.setattr(search, "MAX_EXTRA", data.draw(st.integers(0, 10)))
    monkeypatch.setattr(search, "HITS_PER_SEARCH", data.draw(st.integers(1, 100)))
    vectors_VD, interests_BKD = whole((n_items, 3), seed), whole((n_users, n_interests, 3), seed + 1)
    users, rows = (np.array([p[i] for p in pairs], np.int64) for i in (0, 1))
    excluded = ExcludedPairs.of(users, rows, n_users, n_items)
    allowed = data.draw(st.none() | st.lists(st.booleans(), min_size=n_items, max_size=n_items))
    allowed_V = None if allowed is None else np.array(allowed)
    monkeypatch.setattr(search, "MIN_ALLOWED_SHARE", data.draw(st.sampled_from([0.0, 0.5])))
    oracle = ExactIndex.build(vectors_VD)
    hits = search_items(kind.build(vectors_VD), oracle, interests_BKD, k, excluded, allowed_V)
    if allowed is not None:
        pairs += [(user, row) for user in range(n_users) for row in range(n_items) if not allowed[row]]
    wanted = brute_force(interests_BKD, vectors_VD, k, set(pairs))
    if kind is not BlindIndex:
        assert as_tuples(hits) == wanted
        return
    # what a blind index overlooks is not brought back, but nothing wrong is served and nothing is missing
    assert (
        np.bincount(hits.users_N, minlength=n_users).tolist()
        == np.bincount([w[0] for w in wanted], minlength=n_users).tolist()
    )
    assert not set(zip(hits.users_N, hits.rows_N, strict=True)) & set(pairs)
    assert (hits.rows_N >= 0).all()
    assert len(set(zip(hits.users_N, hits.rows_N, strict=True))) == len(hits.rows_N)


def test_everything_excluded_gives_nothing_for_that_user_only():
    vectors_VD = whole((4, 2), 0)
    excluded = ExcludedPairs.of(np.zeros(4, np.int64), np.arange(4), n_users=2, n_items=4)
    index = ExactIndex.build(vectors_VD)
    hits = search_items(index, index, whole((2, 1, 2), 1), 3, excluded)
    assert hits.users_N.tolist() == [1, 1, 1]
    assert hits.ranks().tolist() == [1, 2, 3]


def test_no_exclusions_ask_for_k_only():
    depths = []

    class Spy(ExactIndex):
        def search(self, queries_BD, k):
            depths.append(k)
            return super().search(queries_BD, k)

    vectors_VD = whole((50, 3), 0)
    nothing = np.empty(0, np.int64)
    search_items(
        Spy.build(vectors_VD),
        ExactIndex.build(vectors_VD),
        whole((4, 2, 3), 1),
        7,
        ExcludedPairs.of(nothing, nothing, 4, 50),
    )
    assert depths == [7]


@pytest.mark.parametrize("masks", [True, False])
def test_no_search_is_larger_than_promised(monkeypatch, masks):
    monkeypatch.setattr(search, "HITS_PER_SEARCH", 200)
    sizes = []

    class Spy(ExactIndex):
        capabilities = IndexCapabilities(exact=True, masks=masks)

        def search_masked(self, queries_BD, k, mask):
            sizes.append(len(queries_BD) * k)
            return super().search_masked(queries_BD, k, mask)

    vectors_VD = whole((100, 3), 0)
    index = Spy.build(vectors_VD)
    users, rows = np.repeat(np.arange(30), 50), np.tile(np.arange(50), 30)
    hits = search_items(index, index, whole((30, 2, 3), 1), 10, ExcludedPairs.of(users, rows, 30, 100))
    assert len(hits.rows_N) == 300
    assert max(sizes) <= 200


@pytest.mark.parametrize("fault", ["shape", "dtype", "row", "nan"])
def test_what_a_plugin_gives_is_checked(fault):
    """faults.md 50: a wrong answer of somebody's index is an error that names it, never a wrong candidate."""

    class Odd(ExactIndex):
        name = "odd"
        capabilities = IndexCapabilities(exact=True)

        def search(self, queries_BD, k):
            scores_Bk, rows_Bk = super().search(queries_BD, k)
            if fault == "nan":
                scores_Bk[0, 0] = torch.nan
            return {
                "shape": (scores_Bk[:, :-1], rows_Bk[:, :-1]),
                "dtype": (scores_Bk, rows_Bk.int()),
                "row": (scores_Bk, rows_Bk + 8),
                "nan": (scores_Bk, rows_Bk),
            }[fault]

    vectors_VD, nothing = whole((10, 3), 0), np.empty(0, np.int64)
    with pytest.raises(PluginError, match="'odd'"):
        search_items(
            Odd.build(vectors_VD),
            ExactIndex.build(vectors_VD),
            whole((2, 1, 3), 1),
            3,
            ExcludedPairs.of(nothing, nothing, 2, 10),
        )


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9))), st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)))
)
def test_excluded_is_a_set_of_pairs(pairs, asked):
    excluded = ExcludedPairs.of(*(np.array([p[i] for p in pairs], np.int64) for i in (0, 1)), n_users=6, n_items=10)
    users, rows = (np.array([p[i] for p in asked], np.int64) for i in (0, 1))
    assert excluded.contains(users, rows).tolist() == [a in set(pairs) for a in asked]
    assert excluded.counts_B.tolist() == [len({r for u, r in pairs if u == user}) for user in range(6)]
    part = excluded.slice(2, 4)
    assert part.counts_B.tolist() == excluded.counts_B[2:4].tolist()
    assert part.contains(users - 2, rows)[(users >= 2) & (users < 4)].tolist() == [
        a in set(pairs) for a in asked if 2 <= a[0] < 4
    ]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 3), st.integers(0, 2)), max_size=40))
def test_top_keeps_each_item_once_with_its_best_score(rows):
    hits = Hits(*(np.array([r[i] for r in rows], np.int64 if i != 2 else np.float32) for i in range(4)))
    best = {}
    for user, row, score, interest in rows:
        best[user, row] = max(best.get((user, row), (-1, 0)), (score, -interest))
    order = sorted(best, key=lambda key: (key[0], -best[key][0], key[1]))
    wanted = [
        (u, r, best[u, r][0], -best[u, r][1])
        for u, r in order
        if sum(o[0] == u for o in order[: order.index((u, r))]) < 2
    ]
    assert as_tuples(hits.top(2)) == wanted
