import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bseq_plugin import Events, Recipe, SchemaError
from bseq_plugin.data.prepare import prepare
from bseq_plugin.data.splits import evaluation_set
from bseq_plugin.data.training_data import TrainingData

SECONDS = 1_600_000_000
CUT = 60  # days
N_ITEMS = 6


def events(rows):
    """Rows of (user, item, day, event type), in any order."""
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp", "event_type"])
    frame["timestamp"] = pd.to_datetime(SECONDS + frame.timestamp * 86_400, unit="s", utc=True)
    return Events.from_frame(frame)


def recipe(split=None, **sections):
    cut = {
        "kind": "time",
        "validation_at": pd.Timestamp(SECONDS + CUT * 86_400, unit="s", tz="UTC").isoformat(),
        "test_at": pd.Timestamp(SECONDS + (CUT + 10) * 86_400, unit="s", tz="UTC").isoformat(),
        "horizon_days": 10,
        "mask_seen": False,
    }
    return Recipe(
        encoder={"max_length": 5}, split={**cut, **(split or {})}, training={"batch": {"users": 3}}, **sections
    )


def everything(batch):
    found = {k: v.tolist() for k, v in vars(batch).items() if hasattr(v, "tolist")}
    found |= {k: (v.values().tolist(), v.lengths().tolist()) for k, v in batch.features.to_dict().items()}
    return found


ROWS = st.tuples(st.integers(0, 5), st.integers(0, N_ITEMS - 1), st.integers(0, CUT - 1), st.sampled_from(["a", "b"]))
FUTURE = st.tuples(
    st.integers(0, 9), st.integers(0, 2 * N_ITEMS), st.integers(CUT, CUT + 30), st.sampled_from(["a", "z"])
)
# somebody to validate with, and something to learn from, whatever hypothesis draws
FIXED_PAST = [(0, 0, 1, "a"), (0, 1, 5, "b"), (0, 1, 30, "a"), (0, 0, 40, "a"), (0, 2, 59, "b")]
FIXED_FUTURE = [(0, 0, CUT, "a"), (0, 1, CUT + 12, "a")]


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"negatives": {"kind": "popularity", "n": 4}},
        {"objective": {"kind": "window", "days": 10, "popularity_days": (7.0,), "step_days": 5}},
    ],
)
@given(past=st.lists(ROWS, max_size=25), future=st.lists(FUTURE, max_size=25), other=st.lists(FUTURE, max_size=25))
@settings(max_examples=40, deadline=None)
def test_what_happens_after_the_cut_changes_no_training_batch(values, past, future, other):
    """Nor the vocabulary, its counts, nor the popularity columns that the model is exported with."""
    logs = [prepare(events(FIXED_PAST + past + FIXED_FUTURE + f), recipe(**values)) for f in (future, other)]
    assert logs[0].vocabulary.item_ids.tolist() == logs[1].vocabulary.item_ids.tolist()
    assert logs[0].vocabulary.item_counts.tolist() == logs[1].vocabulary.item_counts.tolist()
    assert logs[0].vocabulary.event_types == logs[1].vocabulary.event_types
    assert logs[0].trained_until_us == logs[1].trained_until_us < (SECONDS + CUT * 86_400) * 1_000_000
    np.testing.assert_array_equal(*(np.zeros(0) if log.item_priors is None else log.item_priors for log in logs))
    epochs = [
        [everything(b) for b in TrainingData(log.training, log.vocabulary, log.recipe).batches(3)] for log in logs
    ]
    assert epochs[0] == epochs[1]


def test_the_default_cuts_are_one_and_two_horizons_before_the_end():
    log = prepare(
        events([*FIXED_PAST, (0, 1, 85, "a"), (0, 0, 100, "a")]), recipe({"validation_at": None, "test_at": None})
    )
    assert log.recipe.split.test_at == "2020-12-12T12:26:40.000001+00:00"  # ten days before the newest event is over
    assert log.recipe.split.validation_at == "2020-12-02T12:26:40.000001+00:00"
    assert evaluation_set(log.sequences, log.recipe.split, "test").n_users == 1


def test_only_features_that_the_log_has_are_used():
    timed = prepare(events(FIXED_PAST), Recipe(split="none"))
    assert timed.recipe.events.features == ("event_type", "time_gap")
    ordered = prepare(Events.in_order(np.array([1, 1, 1]), np.array([1, 2, 3])), Recipe())
    assert ordered.recipe.events.features == ()
    assert (ordered.validation.n_users, ordered.trained_until_us) == (1, None)


def test_leave_one_out_counts_only_what_it_trains_on():
    """The catalogue is the whole file's, as in the papers; popularity is not."""
    log = prepare(Events.in_order(np.array([1] * 4), np.array([10, 10, 20, 30])), Recipe())
    assert log.vocabulary.item_ids.tolist() == [10, 20, 30]
    assert log.vocabulary.item_counts.tolist() == [2, 0, 0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"split": {"validation_at": "2001-01-01T00:00:00+00:00"}}, "no event lies before split.validation_at = 2001"),
        ({"split": {"validation_at": "2020-12-01"}}, "has no time zone"),
        (
            {"split": {"test_at": "2020-10-01T00:00:00+00:00"}},
            "split.test_at = 2020-10-01.* lies before the end of the validation",
        ),
        ({"split": {"validation_at": "soon"}}, "validation_at = 'soon' is not a time"),
        ({"items": {"attributes": ("shelf",)}}, "give the items table"),
        ({"items": {"min_count": 99}}, "no item has items.min_count = 99 events"),
        (
            {"split": {"validation_at": "2022-01-01T00:00:00+00:00", "test_at": "2022-02-01T00:00:00+00:00"}},
            "choose a cut inside the log",
        ),
    ],
)
def test_splits_that_leave_nothing_are_refused(values, message):
    with pytest.raises(SchemaError, match=message):
        prepare(events(FIXED_PAST + FIXED_FUTURE), recipe(**values))


def test_nobody_with_a_new_item_is_said_in_time():
    """Seen items masked and nothing new bought: there is nobody to validate on."""
    with pytest.raises(
        SchemaError, match="none of the 1 users of the validation has a target that is new to them.*mask_seen = false"
    ):
        prepare(events(FIXED_PAST + FIXED_FUTURE), recipe({"mask_seen": True}))


def test_a_time_split_needs_times_and_single_events_can_not_be_split():
    ordered = Events.in_order(np.array([1, 1, 1]), np.array([1, 2, 3]))
    with pytest.raises(SchemaError, match="split.kind = 'time' needs a log with times"):
        prepare(ordered, recipe())
    singles = Events.in_order(np.array([1, 2, 3]), np.array([1, 2, 3]))
    with pytest.raises(SchemaError, match="nobody of 3 users has 3 events or more"):
        prepare(singles, Recipe())
    log = prepare(singles, Recipe(split="none"))
    with pytest.raises(SchemaError, match="a user needs two or more events"):
        TrainingData(log.training, log.vocabulary, log.recipe)
    with pytest.raises(SchemaError, match="holds nothing out"):
        evaluation_set(log.sequences, log.recipe.split, "test")
