import numpy as np
import pandas as pd
import pytest

from bseq_plugin import Events, Recipe, RecipeError, auto_recipe
from bseq_plugin.data.auto_recipe import choose_recipe
from bseq_plugin.events.events import DAY_US


def log(n_users, length, n_items, seed=0):
    rng = np.random.default_rng(seed)
    users = np.repeat(np.arange(n_users), length)
    items = np.concatenate([np.arange(n_items), rng.integers(0, n_items, max(0, len(users) - n_items))])[: len(users)]
    times = pd.Timestamp("2024-01-01", tz="UTC") + pd.to_timedelta(np.arange(len(users)), "min")
    return Events.from_frame(pd.DataFrame({"user_id": users, "item_id": items, "timestamp": times}))


def test_small_catalogues_are_narrow_and_candidates_as_a_whole():
    small = auto_recipe(log(50, 90, 4_000))
    assert (small.negatives.kind, small.vectors.dim) == ("all", 64)
    large = auto_recipe(log(60, 90, 5_000))
    assert (large.negatives.n, large.negatives.kind, large.vectors.dim) == (1_024, "mixed", 128)


@pytest.mark.parametrize(("length", "max_length"), [(3, 50), (19, 50), (120, 120), (900, 200)])
def test_lengths_decide_what_is_read(length, max_length):
    recipe = auto_recipe(log(40, length, 30))
    assert recipe.encoder.max_length == max_length
    assert recipe.training.batch.events >= recipe.encoder.max_length


def test_small_logs_drop_more():
    recipes = [auto_recipe(log(n_users, 50, 30)) for n_users in (9_999, 10_000)]
    assert [recipe.encoder.dropout for recipe in recipes] == [0.5, 0.2]
    assert [recipe.loss.options.get("label_smoothing", 0.0) for recipe in recipes] == [0.1, 0.0]
    assert [(recipe.vectors.ensemble, recipe.vectors.table_dim) for recipe in recipes] == [(3, 192), (1, 64)]


def test_long_logs_take_fewer_epochs():
    epochs = [auto_recipe(log(n_users, 50, 100)).training.epochs for n_users in (10, 5_000, 20_000)]
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


TIME_SPLIT = {"split": {"kind": "time", "horizon_days": 28.0}}


def test_a_time_split_asks_for_a_window():
    """All targets within the horizon, and popularity of a quarter of it, of it, and of about a year of such."""
    events = spread(40, 50, 30, 200)
    recipe = auto_recipe(events, {"split": {"kind": "time", "horizon_days": 14}})
    assert (recipe.objective.kind, recipe.objective.days, recipe.objective.step_days) == ("window", 14.0, 3.5)
    assert recipe.objective.popularity_days == (3.5, 14.0, 182.0)
    assert recipe.vectors.ensemble == 1
    assert auto_recipe(events).objective.kind == "next"


def test_windows_can_be_asked_for_without_a_split():
    """What was chosen with a time split is trained on everything in the end."""
    events = spread(40, 50, 30, 200)
    asked = {"split": "none", "objective": {"kind": "window", "days": 14}}
    alike = auto_recipe(events, {"split": {"kind": "time", "horizon_days": 14}, "objective": "window"})
    assert auto_recipe(events, asked) == alike.replace(split="none")


def test_what_is_asked_stands_in_the_recipe():
    """Whole settings, and single options beside those that auto chose."""
    events = log(40, 50, 30)
    own = auto_recipe(events)
    asked = {"training": {"epochs": 3}, "encoder": {"n_blocks": 1}}
    assert auto_recipe(events, asked) == own.with_settings(["training.epochs=3", "encoder.n_blocks=1"])
    assert own.encoder.options.items() <= auto_recipe(events, asked).encoder.options.items()
    with pytest.raises(RecipeError, match="unknown key 'training.epoch'"):
        auto_recipe(events, {"training": {"epoch": 3}})


def test_a_horizon_asks_for_a_time_split():
    events = spread(40, 50, 30, 200)
    assert auto_recipe(events, horizon_days=14) == auto_recipe(events, {"split": {"kind": "time", "horizon_days": 14}})


@pytest.mark.parametrize("settings", [[], ["split=time", "split.horizon_days=14", "encoder.half_life_days=3"]])
def test_auto_by_name_with_settings_is_the_same(settings):
    """What --recipe auto and --set choose."""
    events = spread(40, 50, 30, 200)
    asked = {"split": {"kind": "time", "horizon_days": 14}, "encoder": {"half_life_days": 3}}
    assert choose_recipe("auto", settings, events) == auto_recipe(events, asked if settings else {})


@pytest.mark.parametrize(
    ("settings", "events"),
    [
        (["negatives.n=512"], log(50, 200, 5_000)),
        (["split=time", "split.horizon_days=14", "vectors.similarity.temperature=0.3"], None),
        (["split=time", "split.horizon_days=14", "objective.days=7"], None),
    ],
)
def test_what_means_something_in_the_recipe_that_auto_picks_is_taken(settings, events):
    """And before there is a log to look at, in any that it may pick."""
    chosen = choose_recipe("auto", settings, spread(40, 50, 30, 200) if events is None else events)
    assert chosen == chosen.with_settings(settings)
    assert choose_recipe("auto", settings) is not None


def test_what_means_nothing_in_the_recipe_that_auto_picks_is_refused():
    with pytest.raises(RecipeError, match="unknown key 'negatives.n' with kind = 'all'"):
        choose_recipe("auto", ["negatives.n=512"], log(40, 50, 30))


@pytest.mark.parametrize(("days", "said"), [("x", "horizon_days = 'x'"), (-3, "horizon_days = -3"), (True, "a number")])
def test_a_horizon_that_is_none_is_told_by_its_name(days, said):
    with pytest.raises(RecipeError, match=said):
        auto_recipe(log(40, 50, 30), horizon_days=days)


def test_other_recipes_are_chosen_by_name_or_as_they_are():
    recipe = Recipe(vectors={"dim": 8})
    assert choose_recipe(recipe, ["training.epochs=3"]) == recipe.replace(training={"epochs": 3})
    assert choose_recipe(None) == Recipe()
    assert choose_recipe("reference") == Recipe.load("reference")


@pytest.mark.parametrize(
    "against", [{"objective": {"kind": "next"}}, {"encoder": {"name": "causal"}}, {"vectors": {"ensemble": 3}}]
)
def test_what_is_set_against_windows_is_heard(against):
    events = spread(40, 50, 30, 200)
    assert auto_recipe(events, {**TIME_SPLIT, **against}).objective.kind == "next"


def test_a_short_past_has_no_window_to_learn_from():
    """19 of 20 events span two horizons before the validation: 0.95 of (days - 56) is 56 from 115 days on."""
    recipes = [auto_recipe(spread(400, 400, 30, days), TIME_SPLIT) for days in (114, 116)]
    assert [recipe.objective.kind for recipe in recipes] == ["next", "window"]


def test_one_wrong_date_makes_no_long_log():
    frame = spread(40, 50, 30, 70).frame.copy()
    frame.loc[0, "timestamp"] -= int(400 * DAY_US)
    assert auto_recipe(Events(frame), TIME_SPLIT).objective.kind == "next"


def test_the_validation_by_hand_decides_on_the_past():
    events = spread(40, 50, 30, 200)
    early = pd.Timestamp(int(events.frame["timestamp"].min() + 40 * DAY_US), unit="us", tz="UTC").isoformat()
    asked = {"split": {**TIME_SPLIT["split"], "validation_at": early}}
    assert auto_recipe(events, asked).objective.kind == "next"


def test_what_is_held_out_does_not_count():
    """Nothing after the validation changes the recipe: not a million events more, nor new users and items."""
    events = spread(40, 50, 30, 200)
    cut_us = int(events.frame["timestamp"].max()) + 1 - int(2 * 28 * DAY_US)
    past = events.frame[events.frame["timestamp"] < cut_us]
    late = pd.DataFrame(
        {"user_id": np.arange(30_000), "item_id": np.arange(30_000) + 500, "timestamp": events.frame["timestamp"].max()}
    )
    more = pd.concat([past, late], ignore_index=True)
    assert auto_recipe(Events(more), TIME_SPLIT) == auto_recipe(events, TIME_SPLIT)


def test_a_time_split_of_a_log_without_times_is_left_to_who_splits_it():
    frame = log(40, 50, 30).frame.drop(columns="timestamp")
    assert auto_recipe(Events(frame), TIME_SPLIT).objective.kind == "next"


WINDOWS = {"objective": {"kind": "window"}}


def test_very_many_users_take_fewer_epochs_of_windows_and_very_many_items_are_sampled():
    epochs = [auto_recipe(spread(n_users, 2, 30, 200), WINDOWS).training.epochs for n_users in (100, 200_000, 500_000)]
    assert epochs == [16, 8, 4]
    recipes = [auto_recipe(spread(50_001, 2, n_items, 200), WINDOWS) for n_items in (100_000, 100_001)]
    assert [recipe.negatives.kind for recipe in recipes] == ["all", "mixed"]
    assert recipes[1].negatives.n == 16_384


def test_a_small_log_of_few_users_goes_through_them_more_often():
    recipes = [auto_recipe(spread(n, 2, 30, 200), WINDOWS) for n in (100, 4_000, 250_000)]
    assert [recipe.objective.passes_per_epoch for recipe in recipes] == [16, 4, 2]


def test_only_counts_and_the_span_decide_on_windows():
    """Not when within the span things happened, nor to whom."""
    events = spread(40, 30, 50, 300)
    times = events.frame["timestamp"]
    frame = events.frame.assign(item_id=999 - events.frame["item_id"], timestamp=times.max() - times + times.min())
    assert auto_recipe(Events(frame), TIME_SPLIT) == auto_recipe(events, TIME_SPLIT)
