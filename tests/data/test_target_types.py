"""A loss that aims at some event types, and weighs them, against plain Python."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bseq_plugin import Recipe, RecipeError, SchemaError, Sequences, Vocabulary
from bseq_plugin.data.training_data import TrainingData, type_weights
from bseq_plugin.events.events import DAY_US
from bseq_plugin.recipe.objective import NextObjective

N_ITEMS, TYPES = 6, ("buy", "cart", "view")
WEIGHTS = {"none": {}, "buys": {"event_types": ("buy",)}}
WEIGHTS["weighed"] = {"event_type_weights": {"buy": 4.0, "cart": 0.25}}
WEIGHTS["both"] = {"event_types": ("buy", "cart"), "event_type_weights": {"buy": 4.0}}


def vocabulary():
    return Vocabulary(np.arange(N_ITEMS) * 10, np.ones(N_ITEMS, np.int64), TYPES)


def sequences(users):
    """Users as lists of (day, item row, type row)."""
    offsets = np.concatenate([[0], np.cumsum([len(u) for u in users])]).astype(np.int64)
    days, items, types = (np.array([e[n] for u in users for e in u], np.int64) for n in range(3))
    return Sequences(np.arange(len(users)), offsets, items, days * DAY_US, types)


def weight(settings_, item, kind):
    name = ("unknown", *TYPES)[kind]
    chosen = settings_.get("event_types")
    if item == 0 or (chosen and name not in chosen):
        return 0.0
    return settings_.get("event_type_weights", {}).get(name, 1.0)


users_of_logs = st.lists(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, N_ITEMS), st.integers(0, 3)), min_size=1, max_size=7).map(
        lambda u: sorted(u, key=lambda event: event[0])
    ),
    min_size=1,
    max_size=6,
)


def found_targets(log, recipe, world_size=1):
    """Sorted (history, target, weight) of an epoch, and the sum over ranks of each batch's loss scale."""
    targets, scales = [], []
    try:
        ranks = [list(TrainingData(log, vocabulary(), recipe, r, world_size).batches(0)) for r in range(world_size)]
    except SchemaError:
        return [], []
    for batches in zip(*ranks, strict=True):
        scales.append(sum(float(batch.loss_scale) for batch in batches) / world_size)
        for batch in batches:
            events = batch.features["event"]
            ends = np.cumsum(events.lengths().numpy())
            for s in range(len(batch.target_ids_S)):
                row = int(batch.state_rows_Q[batch.target_state_S[s]])
                user = int(np.searchsorted(ends, row, side="right"))
                start = int(ends[user] - events.lengths()[user])
                history = tuple(events.values()[start : row + 1].tolist())
                targets.append((history, int(batch.target_ids_S[s]), float(batch.target_weights_S[s])))
    return sorted(targets), scales


@given(users_of_logs, st.sampled_from(sorted(WEIGHTS)), st.sampled_from(["next", "prefix"]), st.sampled_from([1, 2]))
@settings(max_examples=100, deadline=None)
def test_next_events_of_the_chosen_types(users, which, targets, world_size):
    expected = []
    for user in users:
        for place in range(1, len(user)):
            of_target = weight(WEIGHTS[which], *user[place][1:])
            if of_target:
                expected.append((tuple(item for _, item, _ in user[:place]), user[place][1], of_target))
    objective = {"kind": targets, **WEIGHTS[which]}
    recipe = Recipe(encoder={"max_length": 10}, objective=objective, training={"batch": {"users": 4}})
    found, scales = found_targets(sequences(users), recipe, world_size)
    assert found == sorted(expected)
    assert scales == pytest.approx([1.0] * len(scales))  # ranks share the weight of a batch


@given(users_of_logs, st.sampled_from(sorted(WEIGHTS)))
@settings(max_examples=100, deadline=None)
def test_windows_of_the_chosen_types(users, which):
    """An item that was bought and viewed in one window is one target, with the larger weight."""
    log = sequences(users)
    recipe = Recipe(
        encoder={"max_length": 10},
        objective={"kind": "window", "days": 5, "n": 1, "passes_per_epoch": 1, **WEIGHTS[which]},
        training={"batch": {"users": 99}},
    )
    cut = max(day for user in users for day, *_ in user) - 5 + 1 / DAY_US
    known = {item for user in users for day, item, _ in user if day < cut and item}
    expected = []
    for user in users:
        past = tuple(item for day, item, _ in user if day < cut)
        for item in sorted({i for day, i, _ in user if day >= cut} & known):
            best = max(weight(WEIGHTS[which], i, kind) for day, i, kind in user if day >= cut and i == item)
            if past and best:
                expected.append((past, item, best))
    found, _ = found_targets(log, recipe)
    assert found == sorted(expected)


def test_types_that_the_log_does_not_have_are_named():
    for key, value in (("event_types", ("buy", "sell")), ("event_type_weights", {"sell": 2.0})):
        with pytest.raises(RecipeError, match=rf"objective.{key} names \['sell'\].*: buy, cart, view"):
            type_weights(NextObjective(**{key: value}), vocabulary())
    untyped = Vocabulary(np.arange(2), np.ones(2, np.int64))
    with pytest.raises(RecipeError, match="the log has no column event_type"):
        type_weights(NextObjective(event_types=("buy",)), untyped)
    with pytest.raises(RecipeError, match=r"event_type_weights names \['view'\], which are not among"):
        Recipe(objective={"event_types": ("buy",), "event_type_weights": {"view": 1.0}})
    with pytest.raises(RecipeError, match="event_type_weights"):
        Recipe(objective={"event_type_weights": {"view": 0.0}})


def test_an_event_of_a_type_unseen_in_training_is_no_chosen_target_but_part_of_the_history():
    log = sequences([[(0, 1, 1), (1, 2, 0), (2, 3, 1)]])
    found, _ = found_targets(log, Recipe(encoder={"max_length": 5}, objective={"event_types": ("buy",)}))
    assert found == [((1, 2), 3, 1.0)]
    every, _ = found_targets(log, Recipe(encoder={"max_length": 5}, objective={"event_type_weights": {"buy": 2.0}}))
    assert every == [((1,), 2, 1.0), ((1, 2), 3, 2.0)]
