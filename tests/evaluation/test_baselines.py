import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bseq_plugin import SchemaError, Sequences
from bseq_plugin.evaluation.baselines import PersonalFrequency, Popularity
from bseq_plugin.evaluation.neighbour_baselines import BasketCooccurrence, SessionKnn, TransitionGraph, UserKnn
from bseq_plugin.evaluation.rankers import baseline_ranker, default_baselines, fitted_rankers
from bseq_plugin.events.events import DAY_US

torch.set_num_threads(1)
V = 9


def log(users, timed=True, sessions=True):
    """Each user a list of (day, session, item), oldest first."""
    events = [event for user in users for event in user]
    column = [np.array([e[n] for e in events], dtype=np.int64) for n in range(3)]
    offsets = np.concatenate([[0], np.cumsum([len(u) for u in users])]).astype(np.int64)
    owner = np.repeat(np.arange(len(users)), np.diff(offsets))
    return Sequences(
        np.arange(len(users)) + 100,
        offsets,
        column[2],
        column[0] * DAY_US if timed else None,
        None,
        owner * 1000 + column[1] if sessions else None,
    )


def in_order(*histories):
    return log([[(0, 0, item) for item in history] for history in histories], timed=False, sessions=False)


def top(baseline, histories, k=3, mask=False, n_items=V):
    return baseline_ranker(baseline, n_items)(histories, k, mask).tolist()


def naive_steps(user, sessions):
    """Sets of items, one a basket (or one an event), unknown items left out."""
    steps = []
    for day, session, item in user:
        if item > 0:
            mark = (session,) if sessions else (day,)
            if steps and steps[-1][0] == mark:
                steps[-1][1].add(item)
            else:
                steps.append((mark, {item}))
    return [items for _, items in steps]


def naive_counts(user, half_life=None, until=None):
    counts = np.zeros(V + 1)
    for day, _, item in user:
        if item > 0:
            counts[item] += 1 if half_life is None else 2 ** (-(until - day) / half_life)
    return counts


def naive_graph(users, sessions, backwards=0.9, power=0.3):
    graph, counts = np.zeros((V + 1, V + 1)), sum(naive_counts(u) for u in users)
    for user in users:
        steps = naive_steps(user, sessions)
        for place, items in enumerate(steps):
            for distance, weight in ((1, 1.0), (2, 0.5), (3, 0.33)):
                for later in steps[place + distance] if place + distance < len(steps) else ():
                    for item in items:
                        graph[item, later] += weight
                        graph[later, item] += weight * backwards
    np.fill_diagonal(graph, 0)
    graph /= np.sqrt(np.maximum(graph.sum(1, keepdims=True), 1e-9))
    return graph / np.maximum(counts, 1) ** power


def same_where_positive(baseline, histories, expected):
    """The baseline's opinion equals the loop's; where it has none, scores are below zero."""
    found = baseline.scores(histories).numpy()
    assert found.dtype == np.float32
    for row, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.maximum(row[1:], 0), wanted[1:], rtol=2e-5, atol=1e-6)


@st.composite
def grocery(draw):
    users = []
    for _ in range(draw(st.integers(1, 5))):
        days = sorted(draw(st.lists(st.integers(0, 59), max_size=6)))
        baskets = [(day, n, draw(st.lists(st.integers(0, V), min_size=1, max_size=4))) for n, day in enumerate(days)]
        users.append([(day, n, item) for day, n, items in baskets for item in items])
    users.append([(58, 0, 1), (58, 0, 2), (58, 0, 3), (59, 1, 2), (59, 1, 4)])
    return users


def test_popularity_counts_all_or_the_last_days():
    history = log([[(0, 0, 1), (0, 0, 1), (0, 0, 1), (72, 1, 2), (99, 2, 2), (99, 2, 3), (99, 2, 0)]])
    everything, recent = Popularity(), Popularity(28, at_us=100 * DAY_US)
    for baseline in (everything, recent):
        baseline.fit(history, V)
    assert everything.scores(history)[0, 1:4].tolist() == [3, 2, 1]
    assert recent.scores(history)[0, 1:4].tolist() == [0, 2, 1]
    assert (everything.name, recent.name) == ("popularity", "popularity_28d")
    assert top(everything, history) == [[1, 2, 3]]
    assert top(everything, history, mask=True) == [[4, 5, 6]]
    with pytest.raises(SchemaError, match="no last 28 days"):
        Popularity(28).fit(in_order([1, 2]), V)


def test_personal_frequency_then_recent_popularity():
    others = [[(90, n, 5), (90, n, 7), (91, n, 7)] for n in range(3)]
    mine = [(1, 0, 3), (2, 1, 3), (3, 2, 5), (3, 2, 7), (3, 2, 4)]
    training = log([mine, *others])
    baseline = PersonalFrequency()
    baseline.fit(training, V)
    assert top(baseline, log([mine]), 6) == [[3, 7, 5, 4, 1, 2]]
    assert top(baseline, log([[]]), 2) == [[7, 5]]
    assert top(baseline, log([mine]), 2, mask=True) == [[1, 2]]


def test_decayed_frequency_prefers_what_is_recent():
    mine = [(1, 0, 3), (2, 1, 3), (95, 2, 5)]
    plain, decayed = PersonalFrequency(), PersonalFrequency(half_life_days=10)
    for baseline in (plain, decayed):
        baseline.fit(log([mine]), V)
    assert top(plain, log([mine]), 2) == [[3, 5]]
    assert top(decayed, log([mine]), 2) == [[5, 3]]


@given(grocery(), st.booleans(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_transition_graph_agrees_with_the_loop(users, sessions, hop):
    training = log(users, sessions=sessions)
    # hop_items = all, for which of several equal neighbours comes tenth is nobody's business
    baseline = TransitionGraph(second_hop=0.15 if hop else 0.0, hop_items=V + 1)
    baseline.fit(training, V)
    graph = naive_graph(users, sessions)
    queries = []
    for user in users:
        query = np.zeros(V + 1)
        for age, items in enumerate(naive_steps(user, sessions)[::-1][:10]):
            for item in items:
                query[item] += 0.6**age
        queries.append(query)
    first = [query @ graph for query in queries]
    same_where_positive(baseline, training, [f + (0.15 * f @ graph if hop else 0) for f in first])


def test_cyclic_histories_are_predicted_perfectly():
    cycle = list(range(1, 21))
    histories = [[cycle[(start + n) % 20] for n in range(6)] for start in range(20)]
    baseline = TransitionGraph()
    baseline.fit(in_order(*histories), 20)
    expected = [[cycle[(start + 6) % 20]] for start in range(20)]
    assert top(baseline, in_order(*histories), 1, mask=True, n_items=20) == expected


@given(grocery())
@settings(max_examples=60, deadline=None)
def test_basket_cooccurrence_agrees_with_the_loop(users):
    training = log(users)
    baseline = BasketCooccurrence(half_life_days=20, at_us=60 * DAY_US)
    baseline.fit(training, V)
    baskets = [b for u in users for b in naive_steps(u, True)]
    shared = np.array([[sum(a in b and c in b for b in baskets) for c in range(V + 1)] for a in range(V + 1)], float)
    held = np.maximum(np.diag(shared), 1)
    cosine = shared / np.sqrt(np.outer(held, held))
    np.fill_diagonal(cosine, 0)
    same_where_positive(baseline, training, [np.log1p(naive_counts(u, 20, 60)) @ cosine for u in users])


def unit(vector):
    return vector / max(np.linalg.norm(vector), 1e-9)


@given(grocery())
@settings(max_examples=60, deadline=None)
def test_session_knn_agrees_with_the_loop(users):
    training = log(users)
    baseline = SessionKnn(neighbours=1000, half_life_days=20, days=30, min_items=2, at_us=60 * DAY_US)
    baseline.fit(training, V)
    recent = [[e for e in u if e[0] >= 30] for u in users]
    baskets = [b for u in recent for b in naive_steps(u, True) if len(b) >= 2]
    keys = np.array([[float(i in b) for i in range(V + 1)] for b in baskets])
    queries = [unit(np.log1p(naive_counts(u, 20, 60))) for u in users]
    same_where_positive(baseline, training, [sum((q @ unit(key)) * key for key in keys) for q in queries])


@given(grocery())
@settings(max_examples=60, deadline=None)
def test_user_knn_agrees_with_the_loop(users):
    training = log(users)
    baseline = UserKnn(neighbours=1000, half_life_days=20, at_us=60 * DAY_US)
    baseline.fit(training, V)
    counts = np.array([naive_counts(u) for u in users])
    rarity = np.log(len(users) / np.maximum((counts > 0).sum(0), 1))
    keys = [unit(row) for row in np.log1p(counts) * rarity]
    votes = [np.log1p(naive_counts(u, 20, 60)) for u in users]
    everyone = range(len(users))
    expected = [sum((keys[a] @ keys[b] * votes[b] for b in everyone if b != a), np.zeros(V + 1)) for a in everyone]
    same_where_positive(baseline, training, expected)


def test_few_neighbours_are_the_nearest():
    training = in_order([1, 2, 3], [1, 2, 4], [5, 6, 7], [5, 8, 9], [9])
    baseline = UserKnn(neighbours=1)
    baseline.fit(training, V)
    assert top(baseline, training.take(np.array([0, 1, 2])), 1, mask=True) == [[4], [3], [8]]


@pytest.mark.parametrize(("timed", "sessions"), [(True, True), (True, False), (False, False), (False, True)])
def test_laws_that_hold_for_every_baseline(timed, sessions):
    generator = np.random.default_rng(0)
    users = [
        [
            (day, n, int(i))
            for n, day in enumerate(sorted(generator.integers(0, 60, 4)))
            for i in generator.integers(0, V + 1, 3)
        ]
        for _ in range(12)
    ]
    users[3] = []
    histories = log(users, timed, sessions)
    baselines = default_baselines(histories)
    order = generator.permutation(12)
    for name, rank in fitted_rankers(baselines, histories, V).items():
        kept, masked = rank(histories, V, False), rank(histories, V, True)
        np.testing.assert_array_equal(rank(histories.take(order), V, False), kept[order], name)
        np.testing.assert_array_equal(rank(histories.known(), V, True), masked, name)
        for n, user in enumerate(users):
            seen = {item for _, _, item in user}
            assert sorted(kept[n]) == list(range(1, V + 1)), name
            assert [i for i in kept[n] if i not in seen] == [i for i in masked[n] if i > 0], name
            alone = rank(histories.take(np.array([n])), V, True)
            np.testing.assert_array_equal(alone[0], masked[n], name)
    names = [f.name for f in baselines]
    assert len(set(names)) == len(names)
    assert ("popularity_28d" in names) == ("personal_frequency_decayed" in names) == timed
    assert ("session_knn" in names) == ("basket_cooccurrence" in names) == sessions


@pytest.mark.parametrize("baseline", [SessionKnn(), BasketCooccurrence()])
def test_session_baselines_need_sessions(baseline):
    with pytest.raises(SchemaError, match=f"'{baseline.name}' needs session_id"):
        baseline.fit(in_order([1, 2]), V)


def test_no_recent_session_leaves_popularity():
    training = log([[(0, 0, 1), (0, 0, 2), (0, 0, 3), (0, 1, 3)]])
    baseline = SessionKnn(at_us=400 * DAY_US)
    baseline.fit(training, V)
    assert top(baseline, training, 2) == [[1, 2]]
