"""Lists that do not repeat their categories, against the aim itself and against loops."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bseq_plugin import Diversity, Filters, Retriever, UsageError, Vocabulary
from bseq_plugin.publishing.publish import publish_model
from bseq_plugin.serving.hits import Hits


def value(chosen, scores, codes, weight):
    """What the list is worth: scores, and the weight of every pair of different categories."""
    pairs = itertools.combinations(chosen, 2)
    differ = sum(codes[a] != codes[b] or codes[a] is None for a, b in pairs)
    return sum(scores[i] for i in chosen) + weight * differ


def greedy(scores, codes, weight, k):
    """Takes what adds most to ``value``; the better score of equal ones."""
    chosen = []
    for _ in range(min(k, len(scores))):
        left = [i for i in range(len(scores)) if i not in chosen]
        chosen.append(max(left, key=lambda i: (value([*chosen, i], scores, codes, weight), -i)))
    return chosen


@given(st.data())
@settings(max_examples=120, deadline=None)
def test_each_step_takes_what_adds_most_to_the_aim(data):
    n_items, k = 12, data.draw(st.integers(1, 9))
    weight = data.draw(st.sampled_from([0.0, 0.25, 1.0, 3.0, 100.0]))
    kinds = data.draw(st.lists(st.sampled_from(["a", "b", "c", None]), min_size=n_items, max_size=n_items))
    ids = np.arange(n_items) * 5
    vocabulary = Vocabulary(ids, np.ones(n_items, np.int64))
    spread = Diversity(weight, {int(i): kind for i, kind in zip(ids, kinds, strict=True) if kind}).resolve(vocabulary)
    users, rows, scores, expected = [], [], [], []
    for user in (0, 2, 3):  # nothing was found for user 1
        n = data.draw(st.integers(1, 8))
        own = data.draw(st.permutations(range(n_items)))[:n]
        # quarters: sums are exact, and many are equal
        of_rows = sorted((data.draw(st.integers(-8, 8)) / 4 for _ in own), reverse=True)
        first = len(users)
        expected += [first + i for i in greedy(of_rows, [kinds[row] for row in own], weight, k)]
        users, rows, scores = users + [user] * n, rows + own, scores + of_rows
    none = np.zeros(len(users), np.int64)
    hits = Hits(np.array(users), np.array(rows), np.array(scores, np.float32), none)
    assert spread.chosen(hits, k).tolist() == expected


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_no_list_of_its_length_is_worth_more_with_its_categories_counted(data):
    """Against every list there is; and the first k of a list are the list of k."""
    n, weight = data.draw(st.integers(1, 7)), data.draw(st.sampled_from([0.0, 0.25, 1.0, 3.0, 100.0]))
    kinds = data.draw(st.lists(st.sampled_from(["a", "b", "c", None]), min_size=n, max_size=n))
    ids = np.arange(n)
    vocabulary = Vocabulary(ids, np.ones(n, np.int64))
    named = {int(i): kind for i, kind in zip(ids, kinds, strict=True) if kind}
    spread = Diversity(weight, named, counts="categories").resolve(vocabulary)
    scores = sorted((data.draw(st.integers(-8, 8)) / 4 for _ in range(n)), reverse=True)
    short = data.draw(st.integers(0, n))  # a second user has fewer candidates
    users, rows = np.repeat([1, 4], [n, short]), np.concatenate([ids, ids[:short]])
    hits = Hits(users, rows, np.array(scores + scores[:short], np.float32), np.zeros(n + short, np.int64))

    def worth(chosen):
        own = [kinds[i] for i in chosen]
        return sum(scores[i] for i in chosen) + weight * (len(set(own) - {None}) + own.count(None))

    lists = [spread.chosen(hits, k) for k in range(1, n + 2)]
    for k, places in enumerate(lists, 1):
        for first, length in ((0, n), (n, short)):
            own = [int(p) - first for p in places if first <= p < first + length]
            assert len(set(own)) == len(own) == min(k, length)
            assert worth(own) == max(worth(other) for other in itertools.combinations(range(length), len(own)))
            whole = [int(p) - first for p in lists[-1] if first <= p < first + length]
            assert own == whole[:k]
    if weight == 0.0:
        assert lists[-1].tolist() == list(range(n + short))


@pytest.fixture
def retriever(tmp_path, make_model, make_histories):
    model = make_model()
    publish_model(model, make_histories(model, [5, 12, 3]), tmp_path / "store")
    return Retriever.open(tmp_path / "store")


def categories(retriever):
    return {item: place % 4 for place, item in enumerate(retriever.model.vocabulary.item_ids.tolist())}


def test_no_weight_changes_nothing_and_a_large_one_goes_through_the_categories(retriever):
    users, kinds = retriever.histories.user_ids, categories(retriever)
    plain = retriever.retrieve(users, k=8)
    same = retriever.retrieve(users, k=8, diversity=Diversity(0.0, kinds))
    assert same.to_dict("list") == plain.to_dict("list")
    spread = retriever.retrieve(users, k=8, diversity=Diversity(1e6, kinds, pool=5))
    for _, hits in spread.groupby("user_id"):
        of_hits = [kinds[item] for item in hits["item_id"]]
        assert sorted(of_hits[:4]) == sorted(of_hits[4:]) == [0, 1, 2, 3]
        assert hits["rank"].tolist() == list(range(1, 9))
    # a score stays the item's own
    of_plain = {(u, i): s for u, i, s in retriever.retrieve(users, k=40)[["user_id", "item_id", "score"]].to_numpy()}
    assert all(of_plain[u, i] == s for u, i, s in spread[["user_id", "item_id", "score"]].to_numpy())


def test_more_weight_never_means_fewer_pairs_of_different_categories(retriever):
    kinds = categories(retriever)
    differ = []
    for weight in (0.0, 0.5, 2.0, 50.0):
        hits = retriever.retrieve(retriever.histories.user_ids, k=6, diversity=Diversity(weight, kinds))
        of_users = [[kinds[i] for i in own["item_id"]] for _, own in hits.groupby("user_id")]
        differ.append(sum(a != b for own in of_users for a, b in itertools.combinations(own, 2)))
    assert differ == sorted(differ)
    assert differ[0] < differ[-1]


def test_filters_hold_and_a_small_catalogue_is_told(retriever):
    kinds = categories(retriever)
    ids = retriever.model.vocabulary.item_ids
    allowed = Filters(allow=ids[:6].tolist(), categories=kinds, max_per_category=1)
    hits = retriever.retrieve([100], k=5, exclude="none", filters=allowed, diversity=Diversity(1.0, kinds))
    assert sorted(kinds[i] for i in hits["item_id"]) == [0, 1, 2, 3]
    assert hits["exhausted"].all()
    assert set(hits["item_id"]) <= set(ids[:6])


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"weight": -1.0}, "weight = -1.0; give a number of 0 or more"),
        ({"weight": float("nan")}, "weight = nan"),
        ({"weight": True}, "weight = True"),
        ({"pool": 0}, "pool = 0; give a whole number of 1 or more"),
        ({"categories": ["a"]}, "categories is list"),
        ({"counts": "items"}, "counts = 'items'; use 'pairs' or 'categories'"),
    ],
)
def test_what_can_not_be_used_is_refused(retriever, values, told):
    with pytest.raises(UsageError, match=told):
        retriever.retrieve([100], diversity=Diversity(**{"weight": 1.0, "categories": {}, **values}))
