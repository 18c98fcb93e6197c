import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bseq_plugin import PopularityPrior, Recipe, SchemaError, Sequences, Vocabulary
from bseq_plugin.data.batches import step_random
from bseq_plugin.data.negatives import NegativeSampler
from bseq_plugin.data.training_data import TrainingData
from bseq_plugin.events.events import DAY_US
from bseq_plugin.recipe.objective import SampledNegatives, WholeCatalogue

N_ITEMS = 8


def sequences(users):
    """Users as lists of (day, row)."""
    offsets = np.concatenate([[0], np.cumsum([len(u) for u in users])]).astype(np.int64)
    items = np.array([i for u in users for _, i in u], np.int64)
    times = np.array([t for u in users for t, _ in u], np.int64) * DAY_US
    return Sequences(np.arange(len(users)) + 100, offsets, items, times)


def vocabulary(counts=None):
    return Vocabulary(np.arange(N_ITEMS) * 10, np.ones(N_ITEMS, np.int64) if counts is None else np.array(counts))


def recipe(**sections):
    small = Recipe(encoder={"max_length": 4}, events={"features": ("time_gap",)}, training={"batch": {"users": 3}})
    return small.replace(**sections)


def window_recipe(objective=None, **sections):
    window = {"kind": "window", "days": 5, "step_days": 2, "n": 6, "passes_per_epoch": 2}
    return recipe(objective={**window, **(objective or {})}, **sections)


def histories(batch, key="event"):
    return [row.tolist() for row in batch.features[key].to_dense()]


def flat(batch):
    """Everything in a batch, for comparison."""
    found = {name: getattr(batch, name) for name in vars(batch) if name != "features"}
    found |= {k: v.tolist() for k, v in batch.features.to_dict().items() for v in (v.values(),)}
    found["lengths"] = batch.features.lengths().tolist()
    return {k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in found.items()}


def per_user(batch):
    """[(history, [(place of the state in the history, targets)])] of every user of a batch."""
    starts = np.concatenate([[0], np.cumsum(batch.features["event"].lengths().numpy())])
    rows = batch.state_rows_Q.tolist()
    states = [[] for _ in histories(batch)]
    for number, row in enumerate(rows):
        user = int(np.searchsorted(starts, row, side="right") - 1)
        targets = batch.target_ids_S[batch.target_state_S == number].tolist()
        states[user].append((row - int(starts[user]), targets))
    return list(zip(histories(batch), states, strict=True))


users_of_logs = st.lists(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, N_ITEMS)), max_size=9).map(
        lambda u: sorted(u, key=lambda event: event[0])
    ),
    min_size=1,
    max_size=8,
)


@given(users_of_logs, st.integers(0, 3))
@settings(max_examples=80, deadline=None)
def test_next_event_batches_are_those_of_a_loop(users, epoch):
    expected = []
    for user in users:
        window = [i for _, i in user][-5:]  # max_length + 1: the newest is only a target
        states = [(place, [target]) for place, target in enumerate(window[1:]) if target > 0]
        if states:
            expected.append((window[:-1], states))
    log = sequences(users)
    if not expected:
        with pytest.raises(SchemaError, match="has a history and a target to learn from"):
            TrainingData(log, vocabulary(), recipe())
        return
    data = TrainingData(log, vocabulary(), recipe())
    batches = list(data.batches(epoch))
    assert len(batches) == data.steps_per_epoch == math.ceil(len(expected) / 3)
    found = [user for batch in batches for user in per_user(batch)]
    assert sorted(found) == sorted(expected)
    for batch in batches:
        assert batch.negative_ids_N.tolist() == list(range(1, N_ITEMS + 1))
        assert batch.log_expected_count_N is None
        assert histories(batch, "negative")[0] == batch.negative_ids_N.tolist()
        # a whole catalogue has the targets in it: they are not looked up again
        assert [t for user in histories(batch, "target") for t in user] == []
        assert batch.negative_ids_N[batch.target_places_S].tolist() == batch.target_ids_S.tolist()
        assert batch.target_weights_S.tolist() == [1.0] * len(batch.target_ids_S)
        assert float(batch.loss_scale) == 1.0
        assert (batch.target_state_S.diff() >= 0).all()
        assert batch.n_events == sum(map(len, histories(batch)))


def test_epochs_have_different_orders_and_seeds_too():
    log = sequences([[(0, 1 + n % N_ITEMS), (1, 2), (2, 3)] for n in range(30)])

    def order(seed, epoch):
        return [
            h
            for b in TrainingData(log, vocabulary(), recipe(training={"seed": seed})).batches(epoch)
            for h in histories(b)
        ]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)
    assert sorted(order(0, 0)) == sorted(order(1, 1))


def test_a_step_has_one_generator_that_is_a_function_of_its_place():
    first = step_random(3, 1, 4)
    assert first() is first()
    begun = first().random(3).tolist()
    assert step_random(3, 1, 4)().random(3).tolist() == begun
    others = [step_random(*place)().random(3).tolist() for place in ((4, 1, 4), (3, 2, 4), (3, 1, 5), (3, 1, 0))]
    assert all(other != begun for other in others)


def naive_window(users, cut, days, at_least, max_length):
    """{history: (all its events before the cut, its targets)} in plain Python, days as numbers."""
    bought = {}
    for user in users:
        for time, item in user:
            if item and time < cut:
                bought[item] = bought.get(item, 0) + 1
    catalogue = {item for item, n in bought.items() if n >= at_least}
    expected = []
    for user in users:
        past = [item for time, item in user if time < cut]
        window = {item for time, item in user if cut <= time < cut + days} & catalogue
        if past and any(cut <= time < cut + days for time, _ in user):
            expected.append((past[-max_length:], sorted(window)))
    return sorted(catalogue), expected


# Times of the log are whole days, the newest one ends a microsecond later: instants lie just behind whole days.
JUST = 1 / DAY_US


@given(users_of_logs, st.integers(1, 2), st.integers(0, 2))
@settings(max_examples=120, deadline=None)
def test_window_batches_are_those_of_a_loop(users, at_least, epoch):
    log = sequences(users)
    chosen = window_recipe(
        {"popularity_days": (3.0,)}, items={"min_count": at_least}, training={"batch": {"users": 50}}
    )
    try:
        data = TrainingData(log, vocabulary(), chosen)
    except SchemaError:
        assume(False)
    times = [t for u in users for t, _ in u]
    instants = [max(times) + JUST - 5 - 2 * n for n in range(6)]
    # an instant before which nothing was bought often enough has no catalogue, and is no instant to learn from
    instants = [t for t in instants if t > min(times) and naive_window(users, t, 5, at_least, 4)[0]]
    assert (data.source.cuts / DAY_US).tolist() == pytest.approx(instants, abs=JUST / 4)
    for batch in data.batches(epoch):
        cut_us = data_cut(data, batch)
        cut = cut_us / DAY_US
        catalogue, expected = naive_window(users, cut, 5, at_least, 4)
        assert batch.negative_ids_N.tolist() == catalogue
        found = [(history, [i for _, targets in states for i in targets]) for history, states in per_user(batch)]
        for history, states in per_user(batch):
            assert [place for place, _ in states] in ([], [len(history) - 1])  # the newest state predicts
        if expected:
            # an epoch goes twice through the users: both passes are in this one batch
            assert sorted(found) == sorted(expected * 2)
        else:
            assert [targets for _, targets in found] == [[]]
        priors = PopularityPrior(log, N_ITEMS, (3.0,)).at(cut_us)
        assert batch.target_priors_SP is None
        assert batch.negative_ids_N[batch.target_places_S].tolist() == batch.target_ids_S.tolist()
        assert batch.negative_priors_NP.tolist() == priors[batch.negative_ids_N.numpy()].tolist()


def data_cut(data, batch):
    """The instant of a batch: the only one whose newest history times and catalogue fit is drawn first."""
    n_users, seed = data.recipe.training.batch.users, data.recipe.training.seed
    for epoch in range(3):
        for step in range(data.steps_per_epoch):
            users = data.source.users[data._order(epoch)[step * n_users :][:n_users]]
            if flat(data._batch(users, step_random(seed, epoch, step))) == flat(batch):
                return int(step_random(seed, epoch, step)().choice(data.source.cuts))
    raise AssertionError("no such batch")


def test_window_targets_by_hand():
    """One instant, at day 5: histories end before it, targets are distinct, in the window, and known by then."""
    users = [
        [(0, 1), (1, 2), (5, 2), (6, 3), (6, 3), (7, 1), (9, 4)],  # 4 was not bought by anybody before day 5
        [(4, 3), (8, 0)],  # only an unknown item in the window
        [(6, 1)],  # no history
        [(1, 2)],  # nothing in the window
        [(0, 5), (10 - JUST, 5)],
    ]
    log = sequences(users)
    log.timestamps[:] = [round(t * DAY_US) for u in users for t, _ in u]
    chosen = window_recipe({"n": 1, "passes_per_epoch": 1}, training={"batch": {"users": 9}})
    (batch,) = TrainingData(log, vocabulary(), chosen).batches(0)
    found = {tuple(h): [i for _, ts in s for i in ts] for h, s in per_user(batch)}
    assert found == {(1, 2): [1, 2, 3], (3,): [], (5,): [5]}
    assert batch.negative_ids_N.tolist() == [1, 2, 3, 5]


def test_a_window_longer_than_the_log_is_refused():
    log = sequences([[(0, 1), (3, 2)]])
    with pytest.raises(SchemaError, match=r"objective.days = 5 is longer than the training log \(3.0 days\)"):
        TrainingData(log, vocabulary(), window_recipe())
    order_only = Sequences(log.user_ids, log.offsets, log.items)
    with pytest.raises(SchemaError, match="needs a log with times; use objective.kind = 'next'"):
        TrainingData(order_only, vocabulary(), window_recipe())


def log_for(targets, seed=0, n_users=20):
    random = np.random.default_rng(seed)
    users = [
        sorted(
            [
                (int(t), int(i))
                for t, i in zip(random.integers(0, 30, n), random.integers(0, N_ITEMS + 1, n), strict=True)
            ],
            key=lambda e: e[0],
        )
        for n in random.integers(2, 9, n_users)
    ]
    return sequences(users), window_recipe() if targets == "window" else recipe(objective=targets)


VARIANTS = [
    ("next", {}),
    ("next", {"negatives": {"kind": "uniform", "n": 5}}),
    ("next", {"negatives": {"kind": "popularity", "n": 5}}),
    ("next", {"negatives": {"kind": "mixed", "n": 5}}),
    ("next", {"training": {"batch": {"events": 8}}}),
    ("prefix", {}),
    ("window", {}),
    ("window", {"negatives": {"kind": "uniform", "n": 4}, "objective": {"popularity_days": (3.0, 9.0)}}),
    ("window", {"items": {"min_count": 3}}),
]


@pytest.mark.parametrize(("targets", "values"), VARIANTS)
def test_an_epoch_can_be_taken_up_in_its_middle(targets, values):
    log, base = log_for(targets)
    data = TrainingData(log, vocabulary(), base.replace(**values))
    whole = [flat(b) for b in data.batches(1)]
    assert len(whole) == data.steps_per_epoch > 3
    for start in (0, 1, len(whole) - 1, len(whole)):
        assert [flat(b) for b in data.batches(1, start)] == whole[start:]


@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize(("targets", "values"), VARIANTS)
def test_ranks_share_the_batch_of_a_single_process(targets, values, world_size):
    log, base = log_for(targets)
    chosen = base.replace(**{"training": {"batch": {"users": 6}}, **values})
    alone = TrainingData(log, vocabulary(), chosen).batches(0)
    ranks = [TrainingData(log, vocabulary(), chosen, rank, world_size).batches(0) for rank in range(world_size)]
    steps = list(zip(alone, *ranks, strict=True))
    for whole, *parts in steps:
        users = per_user(whole)
        shared = [user for part in parts for user in per_user(part)]
        if len(users) >= world_size:
            assert shared == users
        else:  # a batch smaller than the world repeats users so that no rank is empty, but none of their targets
            assert [u for u in shared if u[1]] == [u for u in users if u[1]]
            assert {str(history) for history, _ in shared} == {str(history) for history, _ in users}
        assert sorted(i for part in parts for i in part.target_ids_S.tolist()) == sorted(whole.target_ids_S.tolist())
        assert all(per_user(part) for part in parts)
        total = sum(len(part.target_ids_S) for part in parts)
        weights = [float(part.loss_scale) for part in parts]
        assert weights == pytest.approx([world_size * len(p.target_ids_S) / max(total, 1) for p in parts])
        assert sum(weights) == pytest.approx(world_size if total else 0)
        # one negative set a batch, with one logQ: the loss of a batch does not depend on the number of ranks
        for part in parts:
            assert part.negative_ids_N.tolist() == whole.negative_ids_N.tolist()
            if chosen.negatives.kind != "all":
                assert part.log_expected_count_N.tolist() == whole.log_expected_count_N.tolist()
            if part.target_places_S is not None:
                assert part.negative_ids_N[part.target_places_S].tolist() == part.target_ids_S.tolist()


def test_every_step_draws_anew():
    """Negatives and instants of one step are not those of the next one."""
    log, base = log_for("next")
    sampled = base.replace(negatives={"kind": "uniform", "n": 20})
    drawn = [b.negative_ids_N.tolist() for b in TrainingData(log, vocabulary(), sampled).batches(0)]
    assert len({tuple(ids) for ids in drawn}) == len(drawn) > 3
    log, base = log_for("window")
    data = TrainingData(log, vocabulary(), base.replace(objective={"passes_per_epoch": 4, "popularity_days": (3.0,)}))
    assert len({data_cut(data, batch) for batch in data.batches(0)}) >= len(data.source.cuts) - 1


@pytest.mark.parametrize("targets", ["next", "window"])
def test_a_batch_without_targets_leaves_the_loss_alone(targets):
    """Two users who never meet a known target beside one who does: weights are finite whatever the split."""
    log = sequences([[(0, 1), (20, 0)], [(1, 2), (21, 0)], [(2, 3), (22, 4)]])
    chosen = (recipe if targets == "next" else window_recipe)(training={"batch": {"users": 1}})
    for rank in range(2):
        for batch in TrainingData(log, vocabulary(), chosen, rank, 2).batches(0):
            assert math.isfinite(float(batch.loss_scale))
            assert len(histories(batch)) == 1


NOBODY = np.zeros(0, np.int64)


@pytest.mark.parametrize("sampling", ["uniform", "popularity"])
@pytest.mark.parametrize("catalogue", [None, np.array([2, 3, 7])])
def test_negatives_come_as_often_as_they_say(sampling, catalogue):
    counts = [0, 1, 5, 10, 0, 3, 100, 2]
    n = 500
    sampler = NegativeSampler(vocabulary(counts), SampledNegatives(kind=sampling, n=n))
    allowed = list(range(1, N_ITEMS + 1)) if catalogue is None else catalogue.tolist()
    weight = {i: (counts[i - 1] + 1 if sampling == "popularity" else 1) for i in allowed}
    share = {i: w / sum(weight.values()) for i, w in weight.items()}
    seen = np.zeros(N_ITEMS + 1)
    draws = 200
    for number in range(draws):
        drawn = sampler.draw(catalogue, NOBODY, NOBODY, step_random(0, 0, number))
        rows, log_count = drawn.ids, drawn.log_expected_count
        assert (rows.shape, log_count.dtype) == ((n,), np.float32)
        expected = [math.log(n * share[int(row)]) for row in rows]
        np.testing.assert_allclose(log_count, expected, rtol=1e-5, atol=1e-6)
        seen += np.bincount(rows, minlength=N_ITEMS + 1)
    for item in range(N_ITEMS + 1):
        p = share.get(item, 0.0)
        noise = math.sqrt(draws * n * p * (1 - p))
        assert abs(seen[item] - draws * n * p) <= 5 * noise, (item, seen[item], draws * n * p)


def test_all_negatives_are_the_catalogue():
    sampler = NegativeSampler(vocabulary(), WholeCatalogue())
    drawn = sampler.draw(None, np.array([3, 1, 3]), np.array([3, 1, 3]), step_random(0, 0, 0))
    assert (drawn.ids.tolist(), drawn.log_expected_count) == (list(range(1, N_ITEMS + 1)), None)
    assert drawn.places.tolist() == [2, 0, 2]
    assert sampler.draw(np.array([2, 5]), np.array([5]), np.array([5]), step_random(0, 0, 0)).ids.tolist() == [2, 5]


@pytest.mark.parametrize("catalogue", [None, np.array([2, 3, 5, 7, 8])])
@pytest.mark.parametrize("n", [1, 3, 100])
def test_a_mixed_set_has_every_target_and_others_as_often_as_it_says(catalogue, n):
    sampler = NegativeSampler(vocabulary(), SampledNegatives(kind="mixed", n=n))
    targets = np.array([7, 3, 7])
    allowed = set(range(1, N_ITEMS + 1) if catalogue is None else catalogue.tolist())
    others = sorted(allowed - {3, 7})
    n_drawn = min(n, len(others))
    seen = dict.fromkeys(others, 0)
    draws = 300
    for number in range(draws):
        drawn = sampler.draw(catalogue, targets[:1], targets, step_random(0, 0, number))
        assert drawn.ids[drawn.places].tolist() == [7]  # of this rank; 3 is another rank's target
        assert len(set(drawn.ids.tolist())) == len(drawn.ids) == 2 + n_drawn
        assert set(drawn.ids.tolist()) <= allowed
        for item, log_count in zip(drawn.ids.tolist(), drawn.log_expected_count.tolist(), strict=True):
            assert math.exp(log_count) == pytest.approx(1.0 if item in (3, 7) else n_drawn / len(others))
            seen[item] = seen.get(item, 0) + 1
    p = n_drawn / len(others)
    for item in others:
        assert abs(seen[item] - draws * p) <= 5 * math.sqrt(draws * p * (1 - p)) + 1e-9


@given(users_of_logs, st.integers(0, 2))
@settings(max_examples=60, deadline=None)
def test_prefix_examples_are_those_of_a_loop(users, epoch):
    expected = []
    for user in users:
        items = [item for _, item in user]
        for place in range(1, len(items)):
            if items[place] > 0:
                expected.append((items[max(0, place - 4) : place], items[place]))
    chosen = recipe(objective="prefix")
    if not expected:
        with pytest.raises(SchemaError, match="has a history and a target to learn from"):
            TrainingData(sequences(users), vocabulary(), chosen)
        return
    found = []
    for batch in TrainingData(sequences(users), vocabulary(), chosen).batches(epoch):
        for history, states in per_user(batch):
            ((place, targets),) = states
            assert place == len(history) - 1
            found += [(history, target) for target in targets]
    assert sorted(found) == sorted(expected)


@given(users_of_logs, st.sampled_from(["next", "prefix"]), st.integers(4, 12))
@settings(max_examples=60, deadline=None)
def test_batches_by_events_have_everybody_once_and_about_the_same_size(users, targets, budget):
    by_users = recipe(objective=targets)
    try:
        everybody = [u for b in TrainingData(sequences(users), vocabulary(), by_users).batches(0) for u in per_user(b)]
    except SchemaError:
        assume(False)
    chosen = by_users.replace(training={"batch": {"events": budget}})
    data = TrainingData(sequences(users), vocabulary(), chosen)
    batches = list(data.batches(0))
    assert len(batches) == data.steps_per_epoch
    sizes = [sum(len(history) for history, _ in per_user(batch)) for batch in batches]
    assert all(0 < size < 2 * budget + chosen.encoder.max_length for size in sizes)
    assert sorted(u for b in batches for u in per_user(b)) == sorted(everybody)
    share = sum(sizes) / len(sizes)
    assert all(abs(sum(sizes[:n]) - n * share) < chosen.encoder.max_length for n in range(len(sizes)))
