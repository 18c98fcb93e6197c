"""One log split in time: what the encoder of a ranker may learn from, and parts that would be empty."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bseq_plugin import Events, SchemaError, UsageError, ranker_split
from bseq_plugin.testing.ranking_features import log

DAY = 86_400
DAYS = log([(1, 100, -DAY * float(day)) for day in range(1, 31)])


def with_arrival(events, delays):
    """The log whose n-th event arrived ``delays[n]`` days after it happened."""
    delay_us = pd.Series(delays, dtype="int64").mul(DAY * 1_000_000)
    return Events(events.frame.assign(created_timestamp=events.frame["timestamp"] + delay_us))


def test_the_parts_of_a_log_follow_each_other():
    split = ranker_split(DAYS, ranker_days=7, test_days=3)
    assert len(split.encoder_events) == 20
    assert split.test_from - split.ranker_from == pd.Timedelta(days=7)
    assert split.encoder_events.frame["timestamp"].max() < split.ranker_from.value // 1000
    inside = (DAYS.frame["timestamp"] * 1000 >= split.test_from.value).sum()
    assert inside == 3


@given(st.lists(st.integers(-3, 20), min_size=30, max_size=30))
@settings(max_examples=50, deadline=None)
def test_the_encoder_knows_what_had_arrived_at_its_cut(delays):
    delays[29] = 0  # the oldest event, so that no part is empty
    split = ranker_split(with_arrival(DAYS, delays), ranker_days=7, test_days=3)
    cut_us, expected = split.ranker_from.value // 1000, []
    for time_us, delay in zip(DAYS.frame["timestamp"].tolist(), delays, strict=True):
        if time_us < cut_us and time_us + delay * DAY * 1_000_000 <= cut_us:
            expected.append(time_us)
    assert split.encoder_events.frame["timestamp"].tolist() == expected
    assert split.ranker_from == ranker_split(DAYS, ranker_days=7, test_days=3).ranker_from


GAP = log([(1, 100, -DAY * day) for day in (30.0, 29.0, 2.0, 1.0)])


@pytest.mark.parametrize(
    ("events", "days", "said"),
    [
        (DAYS, (25, 5), "encoder's part is empty: the log goes from 2024-04-01T12:00:00.* to 2024-04-30T12:00:00"),
        (DAYS, (1e12, 5), r"encoder's part is empty.*ranker_days \(now 1000000000000.0\) or test_days \(now 5\)"),
        (with_arrival(DAYS, [28] * 30), (2, 1), "encoder's part is empty: no event before 2024-04-27T12:.* arrived"),
        (GAP, (7, 3), "the ranker's part is empty: the log has no event from 2024-04-20T12.* to 2024-04-27T12:"),
        (DAYS, (7, 1e-13), "the test's part is empty: the log has no event from 2024-04-30T12:.* to 2024-04-30T12:"),
        (DAYS, (0, 7), "ranker_days = 0 .*above 0"),
        (DAYS, (7, math.inf), "test_days = inf.*above 0"),
        (DAYS, (7, math.nan), "test_days = nan.*above 0"),
        (Events(DAYS.frame[:0]), (7, 7), "the log is empty"),
    ],
)
def test_a_part_that_would_be_empty_is_named_with_its_times(events, days, said):
    with pytest.raises(UsageError, match=said):
        ranker_split(events, ranker_days=days[0], test_days=days[1])


def test_a_log_without_times_can_not_be_split():
    order = Events.in_order(DAYS.frame["user_id"].to_numpy(), DAYS.frame["item_id"].to_numpy())
    with pytest.raises(SchemaError, match="no times"):
        ranker_split(order)
