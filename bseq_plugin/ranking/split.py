"""One log, split in time for an encoder and the ranker that reads its features."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from bseq_plugin.errors import SchemaError, UsageError
from bseq_plugin.events.events import DAY_US, TIME, Events


class RankerSplit(NamedTuple):
    """Three parts of a log, one after the other.

    Attributes:
        encoder_events: what the encoder is trained on, everything before ``ranker_from``.
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

    Raises UsageError if a part would be empty, SchemaError for a log without times.
    """
    if not events.has_times:
        raise SchemaError("a split in time needs the times of events, and this log has none")
    if not (ranker_days > 0 and test_days > 0):
        raise UsageError(f"ranker_days = {ranker_days} and test_days = {test_days}: give numbers of days above 0")
    first_us, end_us = int(events.frame[TIME].min()), int(events.frame[TIME].max()) + 1
    test_us = end_us - round(test_days * DAY_US)
    ranker_us = test_us - round(ranker_days * DAY_US)
    if ranker_us <= first_us:
        raise UsageError(
            f"the log spans {(end_us - first_us) / DAY_US:.1f} days; {ranker_days} for the ranker and {test_days} for "
            "the test leave none for the encoder: make them shorter"
        )
    stamps = [pd.Timestamp(at_us, unit="us", tz="UTC") for at_us in (ranker_us, test_us)]
    return RankerSplit(events.before(ranker_us), *stamps)
