import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bseq_plugin import UsageError, top_k_items
from bseq_plugin.metrics import item_coverage, top_k_scores

torch.set_num_threads(1)


def naive_top_k(scores, k, excluded):
    """Sort everything by (score down, row up), one user at a time."""
    result = []
    for row, forbidden in zip(scores, excluded, strict=True):
        allowed = [v for v in range(1, len(row)) if v not in forbidden and row[v] > -np.inf]
        best = sorted(allowed, key=lambda v: (-row[v], v))[:k]
        result.append(best + [-1] * (k - len(best)))
    return np.array(result)


def pack(runs):
    offsets = np.concatenate([[0], np.cumsum([len(r) for r in runs])]).astype(np.int64)
    return offsets, np.array([v for r in runs for v in r], dtype=np.int64)


@st.composite
def scored(draw):
    users, items = draw(st.integers(1, 5)), draw(st.integers(1, 9))
    # few distinct values, so that ties stand inside the k, across its border, and everywhere
    values = st.sampled_from([-np.inf, -1.0, -0.0, 0.0, 0.5, 2.0])
    scores = [[draw(values) for _ in range(items + 1)] for _ in range(users)]
    runs = [draw(st.lists(st.integers(0, items), max_size=4)) for _ in range(users)]
    return np.array(scores, np.float32), runs, draw(st.integers(1, items + 3)), draw(st.integers(1, users + 1))


@given(scored())
@settings(max_examples=200, deadline=None)
def test_top_k_scores_is_the_sorted_list(case):
    scores, runs, k, block = case
    found = top_k_scores(lambda users: torch.from_numpy(scores[users].copy()), len(scores), k, pack(runs), block)
    np.testing.assert_array_equal(found, naive_top_k(scores.tolist(), k, runs))
    assert found.dtype == np.int64


@given(st.integers(1, 700), st.integers(1, 12), st.integers(1, 5), st.integers(0, 2**32 - 1))
@settings(max_examples=150, deadline=None)
def test_groups_of_rows_change_nothing(items, k, distinct, seed):
    """Catalogues long enough for groups; few distinct scores tie maxima of groups across the border of the k."""
    random = np.random.default_rng(seed)
    scores = random.integers(0, distinct, (3, items + 1)).astype(np.float32)
    scores[random.random(scores.shape) < random.choice([0, 0.5, 0.99])] = -np.inf
    runs = [random.integers(0, items + 1, 5).tolist() for _ in range(3)]
    found = top_k_scores(lambda users: torch.from_numpy(scores[users].copy()), 3, k, pack(runs), 2)
    np.testing.assert_array_equal(found, naive_top_k(scores.tolist(), k, runs))


@pytest.mark.parametrize("row", [1, 50, 399, 400])
def test_one_nan_anywhere_is_told(row):
    scores = torch.zeros(3, 401)  # all tied, where a comparison could lose it
    scores[2, row] = torch.nan
    with pytest.raises(UsageError, match=r"users 2\.\.2 are not numbers"):
        top_k_scores(lambda users: scores[users].clone(), 3, 5, None, 2)


@pytest.mark.parametrize("block", [1, 3, 100, None])
@pytest.mark.parametrize("interests", [0, 3])
def test_top_k_items_takes_the_largest_inner_products(block, interests):
    generator = torch.Generator().manual_seed(0)
    items = torch.randint(-3, 4, (41, 4), generator=generator).float()
    shape = (7, 4) if interests == 0 else (7, interests, 4)
    queries = torch.randint(-3, 4, shape, generator=generator).float()
    runs = [list(range(n * 4)) for n in range(7)]
    scores = queries.double().numpy() @ items.double().numpy().T
    scores = scores if interests == 0 else scores.max(1)
    found = top_k_items(queries, items, 20, pack(runs), block)
    np.testing.assert_array_equal(found, naive_top_k(scores.tolist(), 20, runs))
    unmasked = top_k_items(queries, items, 20, block=block)
    np.testing.assert_array_equal(unmasked, naive_top_k(scores.tolist(), 20, [[]] * 7))


def test_permuting_users_permutes_rows():
    generator = torch.Generator().manual_seed(1)
    queries, items = torch.randn(9, 4, generator=generator), torch.randn(30, 4, generator=generator)
    order = torch.randperm(9, generator=generator)
    np.testing.assert_array_equal(top_k_items(queries[order], items, 5), top_k_items(queries, items, 5)[order.numpy()])


def test_no_block_is_larger_than_the_limit(monkeypatch):
    monkeypatch.setattr("bseq_plugin.metrics.MAX_BLOCK_SCORES", 100)
    sizes = []

    class Queries:
        shape, dim = (10, 2), staticmethod(lambda: 2)

        def __getitem__(self, users):
            sizes.append(users.stop - users.start)
            return torch.ones(users.stop - users.start, 2)

    top_k_items(Queries(), torch.ones(40, 2), 3)
    assert sizes == [2, 2, 2, 2, 2]


def test_wrong_use_is_told():
    ones = torch.ones(2, 3)
    with pytest.raises(UsageError, match="k = 0"):
        top_k_items(ones, ones, 0)
    with pytest.raises(UsageError, match="not numbers"):
        top_k_items(ones * torch.nan, ones, 1)
    with pytest.raises(UsageError, match="offsets for 1 users, but 2"):
        top_k_items(ones, ones, 1, pack([[1]]))
    with pytest.raises(UsageError, match=r"row 2; this catalogue has rows 0..1"):
        top_k_items(ones, ones, 1, pack([[1], [2]]))


def test_coverage_counts_each_shown_item_once():
    top = np.array([[1, 2, 3], [2, 1, -1], [0, 4, 4]])
    assert item_coverage(top, 8, 2) == 3 / 8
    assert item_coverage(top, 8, 3) == 4 / 8
    with pytest.raises(UsageError, match="n_items = 0"):
        item_coverage(top, 0, 1)
