import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bseq_plugin import SchemaError, Sequences, UsageError
from bseq_plugin.data.splits import EvaluationSet, leave_one_out, time_window, training_part
from bseq_plugin.events.events import DAY_US

CUT = 100 * DAY_US


def sequences(lists, times=None):
    """One history a list; times in days, same shape."""
    lengths = [len(x) for x in lists]
    stamps = None if times is None else np.array([t * DAY_US for row in times for t in row], dtype=np.int64)
    return Sequences(
        np.arange(len(lists)) * 10,
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.array([i for x in lists for i in x], dtype=np.int64),
        stamps,
    )


def lists(s):
    return [s.items[a:b].tolist() for a, b in zip(s.offsets[:-1], s.offsets[1:], strict=True)]


def targets(e: EvaluationSet):
    return [e.target_items[a:b].tolist() for a, b in zip(e.target_offsets[:-1], e.target_offsets[1:], strict=True)]


def test_leave_one_out_takes_the_last_for_test_and_the_one_before_for_validation():
    log = sequences([[1, 2, 3, 4], [5, 6], [7, 8, 9], []])
    validation, test = leave_one_out(log, "validation"), leave_one_out(log, "test")
    assert lists(training_part(log)) == [[1, 2], [], [7], []]
    assert (lists(validation.histories), targets(validation)) == ([[1, 2], [7]], [[3], [8]])
    assert (lists(test.histories), targets(test)) == ([[1, 2, 3], [7, 8]], [[4], [9]])
    assert test.histories.user_ids.tolist() == [0, 20]


def test_leave_one_out_drops_users_whose_target_is_unknown():
    test = leave_one_out(sequences([[1, 2, 0], [3, 0, 4]]), "test")
    assert (lists(test.histories), targets(test)) == ([[3, 0]], [[4]])


def test_leave_one_out_says_when_nobody_is_left():
    with pytest.raises(SchemaError, match="nobody of 2 users has 3 events or more"):
        leave_one_out(sequences([[1, 2], [3]]), "test")
    with pytest.raises(UsageError, match="part = 'train'"):
        leave_one_out(sequences([[1, 2, 3]]), "train")


def test_time_window_cuts_at_the_instant_and_makes_targets_distinct():
    log = sequences(
        [[1, 2, 3, 2, 2, 5], [4, 4], [6], [7, 0], [8, 9]],
        [[1, 99, 100, 101, 127, 128], [99, 130], [100], [1, 110], [1, 100]],
    )
    window = time_window(log, CUT, 28)
    assert window.histories.user_ids.tolist() == [0, 40]
    assert lists(window.histories) == [[1, 2], [8]]
    assert targets(window) == [[2, 3], [9]]
    new = window.new_items_only()
    assert (lists(new.histories), targets(new)) == ([[1, 2], [8]], [[3], [9]])


def test_new_items_only_drops_users_without_a_target():
    log = sequences([[1, 1], [2, 3]], [[1, 100], [1, 100]])
    new = time_window(log, CUT, 1).new_items_only()
    assert (new.histories.user_ids.tolist(), targets(new), new.n_targets) == ([10], [[3]], 1)


@pytest.mark.parametrize("horizon", [0, -1, float("nan"), float("inf")])
def test_time_window_refuses_a_horizon_that_is_no_time(horizon):
    with pytest.raises(UsageError, match="horizon_days"):
        time_window(sequences([[1]], [[1]]), CUT, horizon)


def test_time_window_needs_times_and_people():
    with pytest.raises(SchemaError, match="has no times"):
        time_window(sequences([[1, 2]]), CUT, 28)
    with pytest.raises(SchemaError, match="choose a cut inside the log"):
        time_window(sequences([[1, 2]], [[1, 2]]), CUT, 28)


@st.composite
def logs(draw):
    users = draw(
        st.lists(st.lists(st.tuples(st.integers(95, 105), st.integers(0, 6)), max_size=8), min_size=1, max_size=6)
    )
    users = [sorted(u, key=lambda event: event[0]) for u in users]
    # one user who is certainly evaluated, so that the set is never empty
    users.append([(99, 1), (100, 2)])
    return users


def as_sequences(users):
    return sequences([[i for _, i in u] for u in users], [[t for t, _ in u] for u in users])


@given(logs())
@settings(max_examples=100, deadline=None)
def test_time_window_agrees_with_sets(users):
    window = time_window(as_sequences(users), CUT, 3)
    expected = {}
    for n, user in enumerate(users):
        past = [i for t, i in user if t < 100]
        wanted = sorted({i for t, i in user if 100 <= t < 103 and i > 0})
        if past and wanted:
            expected[n * 10] = (past, wanted)
    found = zip(window.histories.user_ids.tolist(), lists(window.histories), targets(window), strict=True)
    assert {user: (past, wanted) for user, past, wanted in found} == expected
    new = window.new_items_only()
    new_expected = {u: sorted(set(w) - set(p)) for u, (p, w) in expected.items() if set(w) - set(p)}
    assert dict(zip(new.histories.user_ids.tolist(), targets(new), strict=True)) == new_expected
    assert (np.diff(new.target_offsets) > 0).all()


@given(logs(), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_nothing_at_or_after_the_cut_reaches_the_histories(users, random):
    changed = []
    for user in users[:-1]:
        past, future = [e for e in user if e[0] < 100], [e for e in user if e[0] >= 100]
        future = [(t, random.randint(0, 6)) for t, _ in future if random.random() < 0.6]
        changed.append(past + future)
    changed.append(users[-1])
    before, after = time_window(as_sequences(users), CUT, 3), time_window(as_sequences(changed), CUT, 3)
    known = dict(zip(before.histories.user_ids.tolist(), lists(before.histories), strict=True))
    for user, history in zip(after.histories.user_ids.tolist(), lists(after.histories), strict=True):
        assert known.get(user, history) == history == [i for t, i in changed[user // 10] if t < 100]
    assert (after.histories.timestamps < CUT).all()


@given(st.lists(st.lists(st.integers(1, 9), max_size=6), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_leave_one_out_never_shows_a_target_to_training(users):
    log = sequences([*users, [1, 2, 3]])
    train, validation, test = training_part(log), leave_one_out(log, "validation"), leave_one_out(log, "test")
    kept = [u for u in [*users, [1, 2, 3]] if len(u) >= 3]
    assert [h + t for h, t in zip(lists(test.histories), targets(test), strict=True)] == kept
    assert [h + t for h, t in zip(lists(validation.histories), targets(validation), strict=True)] == [
        u[:-1] for u in kept
    ]
    assert [h for h in lists(train) if h] == [u[:-2] for u in kept]
