"""One log, split in time for an encoder and the ranker that reads its features."""

from __future__ import annotations

import math
from typing import NamedTuple

import pandas as pd

from bseq_plugin.data.histories import require_times
from bseq_plugin.errors import UsageError
from bseq_plugin.events.events import DAY_US, TIME, Events


class RankerSplit(NamedTuple):
    """Three parts of a log, one after the other.

    Attributes:
        encoder_events: what the encoder is trained on, everything that was known at ``ranker_from``.
        ranker_from: rows with this ``at`` or a later one, before ``test_from``, train the ranker (timestamp, UTC).
        test_from: rows from here on measure it.
    """

    encoder_events: Events
    ranker_from: pd.Timestamp
    test_from: pd.Timestamp


def ranker_split(events: Events, *, ranker_days: float = 7.0, test_days: float = 7.0) -> RankerSplit:
    """Split a log so that no feature of a ranker knows what its encoder has learned from.

    A feature of a row at ``at`` reads events before ``at``. But an encoder that was trained on later ones has the
    answers in its weights: a ranker then trusts it more than it deserves, and is worse in use than in training. So the
    encoder is trained on what comes before the first row of the ranker, and the ranker on what comes before the first
    row of the test; for use, the encoder is trained anew on everything.

    An event that arrived (``created_timestamp``) after the cut is not the encoder's either: on that day nobody had it.

    Raises UsageError if a part would be empty, naming it and its times; SchemaError for a log without times.
    """
    require_times(events.has_times)
    if not (0 < ranker_days < math.inf and 0 < test_days < math.inf):
        raise UsageError(f"ranker_days = {ranker_days} and test_days = {test_days}: give numbers of days above 0")
    if not len(events):
        raise UsageError("the log is empty: there is nothing to split")
    first_us, end_us = int(events.frame[TIME].min()), int(events.frame[TIME].max()) + 1
    test_us = end_us - round(test_days * DAY_US)
    ranker_us = test_us - round(ranker_days * DAY_US)
    remedy = f"give other ranker_days (now {ranker_days}) or test_days (now {test_days})"
    if ranker_us <= first_us:
        raise UsageError(
            f"the encoder's part is empty: the log goes from {_at(first_us)} to {_at(end_us - 1)}, which the parts of "
            f"ranker and test take up; {remedy}"
        )
    encoder_events = events.known_at(ranker_us)
    if not len(encoder_events):
        raise UsageError(
            f"the encoder's part is empty: no event before {_at(ranker_us)} had arrived (created_timestamp) by then; "
            f"{remedy}"
        )
    for part, start_us, stop_us in (("ranker", ranker_us, test_us), ("test", test_us, end_us)):
        if not len(events.between(start_us, stop_us)):
            raise UsageError(
                f"the {part}'s part is empty: the log has no event from {_at(start_us)} to {_at(stop_us)}; {remedy}"
            )
    return RankerSplit(encoder_events, _stamp(ranker_us), _stamp(test_us))


def _stamp(at_us: int) -> pd.Timestamp:
    return pd.Timestamp(at_us, unit="us", tz="UTC")


def _at(at_us: int) -> str:
    return _stamp(at_us).isoformat()
