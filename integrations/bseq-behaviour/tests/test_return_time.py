"""When a user comes back: the likelihood by a naive loop, habits that can be foreseen, and no look ahead."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from bseq_behaviour.propensity.curves import auroc
from bseq_behaviour.returns.fit_return_time import Waits, fit_return_time
from bseq_behaviour.returns.hazards import Bins
from bseq_behaviour.returns.return_time import ReturnTime, return_recipe
from bseq_behaviour.returns.visits import visits_of
from hypothesis import given, settings
from hypothesis import strategies as st
from instants import DAY_US

import bseq_plugin as bseq

HALF_HOUR = 30 * 60_000_000
RECIPE = return_recipe(with_values=False).replace(
    encoder={"max_length": 32}, vectors={"dim": 16}, training={"batch": {"users": 16}}
)


def log_of(days_of_user, values=None):
    """One event at each of these days of each user."""
    lengths = [len(days) for days in days_of_user]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    times = np.round(np.concatenate([np.sort(days) for days in days_of_user]) * DAY_US).astype(np.int64)
    return bseq.Sequences(np.arange(len(lengths)), offsets, np.ones(len(times), np.int64), times, values=values)


def naive_loss(edges, logits, days, came, weights):
    """Bin by bin, in float64."""
    loss = 0.0
    for place, (lower, upper) in enumerate(pairwise(edges)):
        hazard = 1 / (1 + math.exp(-logits[place]))
        if days >= upper:
            loss -= weights[place] * math.log(1 - hazard)
        elif days >= lower:
            share = (days - lower) / (upper - lower)
            loss -= weights[place] * (math.log(hazard) if came else share * math.log(1 - hazard))
    return loss


waits = st.lists(st.tuples(st.floats(0, 20), st.booleans()), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(waits, st.lists(st.floats(0.01, 5), min_size=1, max_size=5), st.integers(0, 99))
def test_the_censored_likelihood_is_that_of_a_loop(asked, widths, seed):
    edges = tuple(np.concatenate([[0.0], np.cumsum(widths)]).tolist())
    random = np.random.default_rng(seed)
    logits, weights = random.normal(size=(len(asked), len(widths))), random.uniform(0, 2, len(widths))
    days, came = np.array([one[0] for one in asked]), np.array([one[1] for one in asked])
    found = Bins(edges).losses(*(torch.from_numpy(x) for x in (logits, days, came, weights)))
    wanted = [naive_loss(edges, *one, weights) for one in zip(logits, days, came, strict=True)]
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-9)


def test_survival_at_the_edges_is_the_product_of_what_no_bin_took():
    bins, logits = Bins((0.0, 1.0, 3.0, 10.0)), torch.tensor([[0.3, -1.0, 0.5]] * 5, dtype=torch.float64)
    hazards = torch.sigmoid(logits[0])
    found = bins.log_survival(logits, torch.tensor([0.0, 1.0, 3.0, 10.0, 24.0])).exp()
    kept = torch.cat([torch.ones(1), (1 - hazards).cumprod(0)])
    wanted = [*kept.tolist(), float(kept[-1] * (1 - hazards[-1]) ** 2)]  # two more widths of the last bin
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_the_losses_of_all_instants_of_a_wait_are_one_pass_over_its_bins():
    """Every quarter of an hour of a wait of 40 days asks about the 28 days from there."""
    edges, horizon, wait, step = (0.0, 2.0, 7.0, 20.0, 40.0), 28.0, 40.0, 1 / 96
    rates = np.array([0.3, 0.1, 0.7, 0.2])  # -ln(1 - hazard) of each bin
    asked = np.zeros(4)
    for instant in np.arange(step / 2, wait, step):
        end = min(instant + horizon, wait)
        for place in range(4):
            inside = min(end, edges[place + 1]) - max(instant, edges[place])
            asked[place] += step * max(inside, 0) / (edges[place + 1] - edges[place])
    found = Bins(edges).instant_weights(horizon).numpy() * horizon
    np.testing.assert_allclose(found * rates, asked * rates, rtol=1e-3)


def test_visits_are_sessions_in_third_octaves_of_days_and_half_octaves_of_events():
    hour = 1 / 24
    log = log_of([[0, hour / 4, 1, 1 + hour / 3, 3], [], [5]], values=np.array([1.0, 2, np.nan, np.nan, 4, 5]))
    found = visits_of(log, HALF_HOUR)
    np.testing.assert_array_equal(found.histories.offsets, [0, 3, 3, 4])
    ends = np.array([hour / 4, 1 + hour / 3, 3, 5]) * DAY_US
    np.testing.assert_allclose(found.histories.timestamps, ends, atol=1)
    np.testing.assert_array_equal(found.histories.event_types, [3, 3, 1, 1])
    gaps = [1, 2 + int(3 * math.log2(16 * (1 - hour / 4))), 2 + int(3 * math.log2(16 * (2 - hour / 3))), 1]
    np.testing.assert_array_equal(found.histories.items, gaps)
    np.testing.assert_array_equal(found.histories.values, [3, np.nan, 4, 5])
    days, came = found.days_to_next(6 * DAY_US)
    np.testing.assert_allclose(days, [1 - hour / 4, 2 - hour / 3, 3, 1])
    np.testing.assert_array_equal(came, [True, True, False, False])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(1, 9))
def test_every_visit_is_an_answer_once_with_half_a_window_before_it(lengths, max_length):
    if sum(lengths) == 0:
        return
    log = log_of([np.arange(n) for n in lengths])
    found = Waits.of(log, 100 * DAY_US, HALF_HOUR, max_length)
    histories, rows, visits = found.take(np.arange(len(found.users_W)))
    np.testing.assert_array_equal(np.sort(visits), np.arange(sum(lengths)))
    assert histories.lengths.max() <= max_length
    place_T = np.arange(histories.n_events) - np.repeat(histories.offsets[:-1], histories.lengths)
    before_T = np.arange(log.n_events) - np.repeat(log.offsets[:-1], log.lengths)  # a visit is an event here
    assert (place_T[rows] >= np.minimum(before_T[visits], max_length - max(1, max_length // 2))).all()


def periodic(seed=0):
    """User u comes every 2, 5 or 11 days, to within an hour."""
    random = np.random.default_rng(seed)
    periods = np.array([2, 5, 11])[np.arange(60) % 3]
    days = [np.arange(random.uniform(0, p), 120, p) + random.uniform(0, 1 / 24, 1) for p in periods]
    return log_of(days), periods


@pytest.fixture(scope="module")
def habits():
    log, periods = periodic()
    return log, periods, fit_return_time(log, 80 * DAY_US, RECIPE.replace(training={"epochs": 25}))


def test_strictly_periodic_users_come_when_they_come(habits):
    """The next visit is known to the day: it is foreseen within a day more, and not a day before."""
    log, periods, model = habits
    at_us = 90 * DAY_US
    last_U = np.array([log.between(None, at_us).take([u]).timestamps[-1] for u in range(60)])
    due_U = periods - (at_us - last_U) / DAY_US
    assert (due_U > 0).all()
    chances = np.stack([model.within(log, at_us, [0.5, 1, 2, 3, 4, 6, 9, 12])[u] for u in range(60)])
    for place, days in enumerate([0.5, 1, 2, 3, 4, 6, 9, 12]):
        certain, never = due_U < days - 1.5, due_U > days + 1.5
        assert (chances[certain, place] > 0.8).all()
        assert (chances[never, place] < 0.2).all()
    assert (np.diff(chances, axis=1) >= 0).all()
    came = due_U < 3
    assert auroc(came.astype(float), chances[:, 3]) > 0.98


def test_what_comes_later_changes_nothing(habits):
    log, _, model = habits
    at_us = 85 * DAY_US
    times = log.timestamps.copy()
    later = times >= at_us
    times[later] += 3 * DAY_US
    moved = bseq.Sequences(log.user_ids, log.offsets, log.items, times)
    np.testing.assert_array_equal(model.within(log, at_us, [7.0]), model.within(moved, at_us, [7.0]))
    again = fit_return_time(moved, 80 * DAY_US, RECIPE.replace(training={"epochs": 2}))
    once = fit_return_time(log, 80 * DAY_US, RECIPE.replace(training={"epochs": 2}))
    for name, weight in once.state_dict().items():
        torch.testing.assert_close(weight, again.state_dict()[name], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("encoder", "options", "causal"),
    [
        ("hstu", {"n_blocks": 1, "position": "oldest"}, True),
        ("causal", {"n_blocks": 1, "position": "oldest"}, True),
        ("mean", {"half_life_days": 30.0, "dropout": 0.0}, True),
        ("hstu", {"n_blocks": 1}, False),
        ("causal", {"n_blocks": 1}, False),
        ("masked", {"n_blocks": 1}, True),  # each visit a pass of its own
        ("cross_session", {}, True),
    ],
)
def test_encoders_that_look_ahead_are_refused(encoder, options, causal):
    log, _ = periodic()
    recipe = RECIPE.replace(encoder={"name": encoder, **options}, training={"epochs": 1})
    if causal:
        assert np.isfinite(fit_return_time(log, 80 * DAY_US, recipe).within(log, 80 * DAY_US, [7.0])).all()
    else:
        with pytest.raises(bseq.RecipeError, match="those after it"):
            fit_return_time(log, 80 * DAY_US, recipe)


def test_a_saved_model_says_the_same_and_damage_is_found(habits, tmp_path):
    log, _, model = habits
    path = tmp_path / "returns.safetensors"
    model.save(path)
    again = ReturnTime.load(path)
    assert (again.recipe, again.bins, again.until_us) == (model.recipe, model.bins, model.until_us)
    np.testing.assert_array_equal(again.within(log, 90 * DAY_US, [7.0]), model.within(log, 90 * DAY_US, [7.0]))
    raw = path.read_bytes()
    for place in (3, len(raw) // 3, len(raw) - 10):  # the header, some weights, the last one
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
        with pytest.raises(bseq.RunError, match=r"returns.safetensors' is"):
            ReturnTime.load(path)
    path.write_bytes(raw[:-5])
    with pytest.raises(bseq.RunError, match="is not a file"):
        ReturnTime.load(path)
    with pytest.raises(bseq.RunError, match="no file"):
        ReturnTime.load(tmp_path / "nothing")


def test_input_unlike_any_other(habits):
    log, _, model = habits
    with pytest.raises(bseq.UsageError, match="before the end of training"):
        model.within(log, 79 * DAY_US, [7.0])
    assert np.isfinite(model.within(log, 79 * DAY_US, [7.0], allow_future_model=True)).all()
    for days in ([], [0.0], [7.0, -1.0]):
        with pytest.raises(bseq.UsageError, match="positive"):
            model.within(log, 90 * DAY_US, days)
    with pytest.raises(bseq.UsageError, match="ascending"):
        Bins((0.0, 2.0, 2.0))
    for edges in ((0.0, float("nan"), 3.0), (0.0, 1.0, float("inf"))):
        with pytest.raises(bseq.UsageError, match="ascending days"):
            Bins(edges)
    with pytest.raises(bseq.UsageError, match="horizon"):
        Bins().instant_weights(0.0)
    with pytest.raises(bseq.SchemaError, match="no values|has none"):
        fit_return_time(log, recipe=return_recipe(with_values=True))
    with pytest.raises(bseq.SchemaError, match="times"):
        fit_return_time(bseq.Sequences(np.arange(1), np.array([0, 1]), np.ones(1, np.int64)))
    with pytest.raises(bseq.SchemaError, match="nobody"):
        fit_return_time(log, -DAY_US)
    years = log_of([[0, 4000], [], [1], [2, 2, 2]])  # a gap of years, nobody, one event, all at one instant
    fitted = fit_return_time(years, recipe=RECIPE.replace(training={"epochs": 1}))
    found = fitted.within(years, fitted.until_us, [1.0, 1e6])
    assert np.isnan(found[1]).all()
    assert ((found[[0, 2, 3]] >= 0) & (found[[0, 2, 3]] <= 1)).all()
    assert isinstance(fitted, ReturnTime)
