import numpy as np
import pandas as pd
import pytest

from bseq_plugin.data.auto import auto_recipe
from bseq_plugin.data.events import DAY_US, Events


def log(n_users, length, n_items, seed=0):
    rng = np.random.default_rng(seed)
    users = np.repeat(np.arange(n_users), length)
    items = np.concatenate([np.arange(n_items), rng.integers(0, n_items, max(0, len(users) - n_items))])[: len(users)]
    times = pd.Timestamp("2024-01-01", tz="UTC") + pd.to_timedelta(np.arange(len(users)), "min")
    return Events.from_frame(pd.DataFrame({"user_id": users, "item_id": items, "timestamp": times}))


def test_small_catalogues_are_narrow_and_candidates_as_a_whole():
    small = auto_recipe(log(50, 90, 4_000))
    assert (small.candidates, small.dim) == ("all", 64)
    large = auto_recipe(log(60, 90, 5_000))
    assert (large.candidates, large.sampling, large.dim) == (1_024, "mixed", 128)


@pytest.mark.parametrize(("length", "max_length"), [(3, 50), (19, 50), (120, 120), (900, 200)])
def test_lengths_decide_what_is_read(length, max_length):
    recipe = auto_recipe(log(40, length, 30))
    assert recipe.max_length == max_length
    assert recipe.batch_events >= recipe.max_length


def test_small_logs_drop_more():
    recipes = [auto_recipe(log(n_users, 50, 30)) for n_users in (9_999, 10_000)]
    assert [recipe.dropout for recipe in recipes] == [0.5, 0.2]
    assert [recipe.loss_options.get("label_smoothing", 0.0) for recipe in recipes] == [0.1, 0.0]
    assert [(recipe.members, recipe.vector_dim) for recipe in recipes] == [(3, 192), (1, 64)]


def test_long_logs_take_fewer_epochs():
    epochs = [auto_recipe(log(n_users, 50, 100)).epochs for n_users in (10, 5_000, 20_000)]
    assert epochs == [40, 20, 8]


def test_only_counts_decide():
    """Neither ids nor the order or time of events."""
    events = log(40, 30, 50)
    frame = events.frame.sample(frac=1.0, random_state=1)
    frame = frame.assign(item_id=999 - frame["item_id"], timestamp=frame["timestamp"].to_numpy()[::-1])
    assert auto_recipe(Events(frame)) == auto_recipe(events)


def spread(n_users, length, n_items, days):
    """The same log with its events evenly spread over ``days``, everybody's first event on the first of them."""
    frame = log(n_users, length, n_items).frame.copy()
    frame["timestamp"] = np.tile(np.linspace(0, days * DAY_US, length).astype(np.int64), n_users)
    return Events(frame)


def test_a_time_split_asks_for_a_window():
    """All targets within the horizon, and popularity of a quarter of it, of it, and of about a year of such."""
    events = spread(40, 50, 30, 200)
    recipe = auto_recipe(events, "time", 14.0)
    assert (recipe.split, recipe.horizon_days, recipe.targets, recipe.window_days) == ("time", 14.0, "window", 14.0)
    assert recipe.popularity_days == (3.5, 14.0, 182.0)
    assert recipe.members == 1
    assert auto_recipe(events).targets == "next"


@pytest.mark.parametrize(("days", "targets"), [(111, "next"), (112, "window")])
def test_a_short_log_has_no_window_to_learn_from(days, targets):
    assert auto_recipe(spread(40, 50, 30, days), "time", 28.0).targets == targets


def test_a_time_split_of_a_log_without_times_is_left_to_who_splits_it():
    frame = log(40, 50, 30).frame.drop(columns="timestamp")
    assert auto_recipe(Events(frame), "time").targets == "next"


def test_very_many_users_take_fewer_epochs_of_windows_and_very_many_items_are_sampled():
    epochs = [auto_recipe(spread(n_users, 2, 30, 200), "time").epochs for n_users in (100, 200_000, 500_000)]
    assert epochs == [16, 8, 4]
    recipes = [auto_recipe(spread(50_001, 2, n_items, 200), "time") for n_items in (100_000, 100_001)]
    assert [(recipe.candidates, recipe.sampling) for recipe in recipes] == [("all", "uniform"), (16_384, "mixed")]


def test_only_counts_and_the_span_decide_on_windows():
    """Not when within the span things happened, nor to whom."""
    events = spread(40, 30, 50, 300)
    times = events.frame["timestamp"]
    frame = events.frame.assign(item_id=999 - events.frame["item_id"], timestamp=times.max() - times + times.min())
    assert auto_recipe(Events(frame), "time") == auto_recipe(events, "time")
