"""Labels, counts and vectors as of an instant, against loops over the rows of the log."""

import numpy as np
import pandas as pd
import pytest
from bseq_behaviour.propensity.labels import known_users, labels, require_both_classes, weekly_demand
from bseq_behaviour.propensity.rfm import event_values, rfm_features
from bseq_behaviour.propensity.tasks import Counts, Task
from bseq_behaviour.propensity.vectors import user_vectors
from hypothesis import given, settings
from hypothesis import strategies as st
from instants import DAY_US

import bseq_plugin as bseq

START_US = 1_700_000_000_000_000

logs = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 5), st.integers(0, 39), st.sampled_from(["buy", "view"])),
    min_size=1, max_size=40,
)  # fmt: skip


def log_of(rows):
    """(events, sequences, vocabulary) of (user, item, half day, type); the value of a row is its place."""
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp", "event_type"])
    frame["timestamp"] = START_US + frame["timestamp"] * (DAY_US // 2)
    events = bseq.Events.from_frame(frame.assign(value=np.arange(len(frame)) + 1.0), timestamp_unit="us")
    vocabulary = bseq.Vocabulary.from_events(events)
    return events, bseq.Sequences.from_events(events, vocabulary), vocabulary


@settings(max_examples=60, deadline=None)
@given(logs, st.integers(0, 40), st.sampled_from([1, 3, 7.5]), st.sampled_from(["all", "buy", "even"]))
def test_labels_are_what_a_loop_over_the_rows_finds(rows, at, days, which):
    _, log, vocabulary = log_of(rows)
    at_us = START_US + at * (DAY_US // 2)
    counts = Counts(None, None)
    if which == "buy":
        counts = Counts(None, vocabulary.event_type_rows(["buy"])[0]) if "buy" in vocabulary.event_types else counts
        which = "buy" if "buy" in vocabulary.event_types else "all"
    if which == "even":
        counts = Counts(np.concatenate([[False], vocabulary.item_ids % 2 == 0]), None)
    wanted = {"all": lambda i, t: True, "buy": lambda i, t: t == "buy", "even": lambda i, t: i % 2 == 0}[which]
    inside = {
        user
        for user, item, time, kind in rows
        if at_us <= START_US + time * (DAY_US // 2) < at_us + days * DAY_US and wanted(item, kind)
    }
    end_us = at_us + round(days * DAY_US)
    bought = labels(log, Task("purchase", days), counts, at_us, end_us)
    assert [user for user, yes in zip(log.user_ids, bought, strict=True) if yes] == sorted(inside)
    np.testing.assert_array_equal(labels(log, Task("churn", days), counts, at_us, end_us), 1 - bought)
    with pytest.raises(bseq.SchemaError, match="ends after the log"):
        labels(log, Task("churn", days), counts, at_us, end_us - 1)


@settings(max_examples=60, deadline=None)
@given(logs, st.integers(0, 40))
def test_counts_are_what_a_loop_over_the_rows_finds(rows, at):
    events, log, vocabulary = log_of(rows)
    at_us = START_US + at * (DAY_US // 2)
    even = Counts(np.concatenate([[False], vocabulary.item_ids % 2 == 0]), None)
    found = rfm_features(log, at_us, event_values(events), even)
    for place, user in enumerate(log.user_ids):
        for prefix, own in (("", False), ("own_", True)):
            past = [
                ((at_us - START_US) / DAY_US - time / 2, place + 1)
                for place, (who, item, time, _) in enumerate(rows)
                if who == user and START_US + time * (DAY_US // 2) < at_us and (not own or item % 2 == 0)
            ]
            row = found.iloc[place]
            for span in (7, 28, 84, None):
                inside = [(age, value) for age, value in past if span is None or age <= span]
                name = "all" if span is None else f"{span}d"
                assert row[f"{prefix}events_{name}"] == len(inside)
                assert row[f"{prefix}value_{name}"] == sum(value for _, value in inside)
                days = {int(age) for age, _ in inside}
                assert row[f"{prefix}days_{name}"] == len(days)
            if not past:
                assert np.isnan(row[f"{prefix}recency_days"])
                continue
            ages = sorted(age for age, _ in past)
            assert row[f"{prefix}recency_days"] == pytest.approx(ages[0])
            assert row[f"{prefix}tenure_days"] == pytest.approx(ages[-1])
            if len(days) > 1:
                assert row[f"{prefix}gap_days"] == pytest.approx((ages[-1] - ages[0]) / (len(days) - 1))
            else:
                assert np.isnan(row[f"{prefix}gap_days"])


@settings(max_examples=40, deadline=None)
@given(logs, st.integers(0, 20), st.integers(1, 3))
def test_weekly_demand_is_what_a_loop_over_the_rows_finds(rows, start, n_weeks):
    _, log, vocabulary = log_of(rows)
    start_us = START_US + start * (DAY_US // 2)
    category_V = np.concatenate([[-1], np.where(vocabulary.item_ids == 5, -1, vocabulary.item_ids % 2)])
    expected = np.zeros((2, n_weeks), np.int64)
    for _, item, time, _ in rows:
        week = (START_US + time * (DAY_US // 2) - start_us) // (7 * DAY_US)
        if 0 <= week < n_weeks and item != 5:
            expected[item % 2, week] += 1
    np.testing.assert_array_equal(weekly_demand(log, category_V, 2, start_us, n_weeks), expected)


def test_later_events_change_no_input(habit_run, habit_frame):
    """The past of an instant decides on who is asked and on what a head reads."""
    model = bseq.InterestModel.from_run(habit_run.path)
    log = bseq.Sequences.from_events(bseq.Events.from_frame(habit_frame), model.vocabulary)
    at_us = int(np.quantile(log.timestamps, 0.8))
    cut = log.between(None, at_us)
    np.testing.assert_array_equal(known_users(log, at_us), known_users(cut, at_us))
    pd.testing.assert_frame_equal(rfm_features(log, at_us), rfm_features(cut, at_us))
    assert (user_vectors(model, log, at_us) == user_vectors(model, cut, at_us)).all()


def test_vectors_that_know_the_answers_are_refused(habit_run):
    model, log = bseq.InterestModel.from_run(habit_run.path), habit_run.sequences()
    with pytest.raises(bseq.UsageError, match="before the end of training"):
        user_vectors(model, log, model.trained_until_us)
    assert len(user_vectors(model, log, model.trained_until_us + 1)) == log.n_users
    assert len(user_vectors(model, log, model.trained_until_us, allow_future_model=True)) == log.n_users


def test_known_users_and_activity():
    _, log, _ = log_of([(0, 1, 0, "buy"), (1, 1, 10, "buy"), (2, 1, 30, "buy")])
    at_us = START_US + 6 * DAY_US
    assert known_users(log, at_us).tolist() == [0, 1]
    assert known_users(log, at_us, active_days=2).tolist() == [1]
    with pytest.raises(bseq.UsageError, match="active_days = 0"):
        known_users(log, at_us, active_days=0)


@pytest.mark.parametrize("text", ["churn:28", "purchase:7.5", "purchase:28:group=g1", "purchase:28:event_type=buy"])
def test_a_task_is_the_text_it_is_parsed_from(text):
    assert Task.parse(text).name == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("churn", "kind:days"), ("churn:soon", "kind:days"), ("leave:7", "'leave'"), ("churn:-1", "positive"),
        ("churn:inf", "positive"), ("purchase:7:group", "column=value"), ("purchase:7:=x", "column=value"),
    ],
)  # fmt: skip
def test_a_text_that_is_no_task(text, words):
    with pytest.raises(bseq.UsageError, match=words):
        Task.parse(text)


def test_a_task_that_nothing_can_fulfil(habit_items):
    _, _, vocabulary = log_of([(0, 1, 0, "buy"), (1, 3, 10, "view")])
    for text, items, words in (
        ("purchase:7:group=g9", habit_items, "no item of the catalogue"),
        ("purchase:7:group=g3", habit_items, "no item of the catalogue"),  # only items that the log lacks
        ("purchase:7:colour=red", habit_items, "items table has"),
        ("purchase:7:group=g0", None, "there is no items table"),
        ("purchase:7:event_type=cart", None, "buy"),
    ):
        with pytest.raises(bseq.UsageError, match=words):
            Task.parse(text).counts(vocabulary, items)


def test_labels_of_one_class():
    with pytest.raises(bseq.SchemaError, match="all 3 answers in training are no"):
        require_both_classes(np.zeros(3), Task("churn", 7), "in training")
    with pytest.raises(bseq.SchemaError, match="are yes"):
        require_both_classes(np.ones(3), Task("churn", 7), "in training")
    require_both_classes(np.array([0.0, 1.0]), Task("churn", 7), "in training")


def test_what_needs_times_or_values_says_so():
    events = bseq.Events.in_order(np.array([1, 1]), np.array([2, 3]))
    log = bseq.Sequences.from_events(events, bseq.Vocabulary.from_events(events))
    with pytest.raises(bseq.SchemaError, match="times"):
        rfm_features(log, 0)
    with pytest.raises(bseq.SchemaError, match="times"):
        known_users(log, 0)
    with pytest.raises(bseq.SchemaError, match="'value'"):
        event_values(events)


def test_a_value_is_found_whatever_a_table_made_of_it():
    """A gap makes floats of integers, and an item may have several genres."""
    vocabulary = bseq.Vocabulary(np.array([1, 2, 3]), np.ones(3))
    items = pd.DataFrame({"item_id": [1, 2, 3], "fl": [1.0, np.nan, 10.0], "genre": [["a", "b"], [], ["b"]]})
    for text, wanted in (("fl=1", [1]), ("fl=10", [3]), ("genre=b", [1, 3]), ("genre=a", [1])):
        mask = Task.parse(f"purchase:5:{text}").counts(vocabulary, items).items_V
        assert np.flatnonzero(mask).tolist() == wanted
