"""Features of an event beside its item: its type, when it was, where in its session, what it was worth.

Each feature is a row of an embedding table of its own, int64, so that one ``KeyedJaggedTensor`` carries them all:

    feature        row
    event_type     vocabulary row, 0 = unknown type
    time_gap       0 for a user's first event, else 1 + floor(log2(1 + seconds since the event before))
    time_of_week   hour of the week, 0 = Monday 00:00 to 00:59 in ``events.time_zone``
    session        events before it in its session: 0 marks the boundary
    value          0 = no value, 1 = nearly zero, then half octaves of what it was worth, gains before losses

All are of the events that are read: the first of them has no event before it and begins a session, whatever stood in
front. Training and serving cut histories alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bseq_plugin.errors import RecipeError, UsageError
from bseq_plugin.events.events import EVENT_TYPE, MICROSECONDS, VALUE
from bseq_plugin.events.sequences import Sequences
from bseq_plugin.plugins import plugin_manager
from bseq_plugin.recipe.data import SESSION_GAP_MINUTES, EventSettings
from bseq_plugin.recipe.model import EncoderSettings
from bseq_plugin.schema.options import names_in

if TYPE_CHECKING:
    from bseq_plugin.recipe.recipe import Recipe

TIME_GAP, TIME_OF_WEEK, SESSION = "time_gap", "time_of_week", "session"
N_TIME_GAPS = 32  # buckets of log2 seconds; the last one begins at 2^30 s, 34 years
N_HOURS = 168
EPOCH_HOUR = 72  # 1970 began on a Thursday
N_POSITIONS = 64  # the last one is for all that come later in a session
SMALLEST_VALUE = 2.0**-7  # nearer to zero is zero; money is counted in hundredths
VALUE_HALF_OCTAVES = 64  # up to 2 ** 25
# feature -> rows of its table; that of event types depends on the log
TABLE_ROWS = {TIME_GAP: N_TIME_GAPS, TIME_OF_WEEK: N_HOURS, SESSION: N_POSITIONS, VALUE: 2 + 2 * VALUE_HALF_OCTAVES}
MINUTE_US = 60 * MICROSECONDS["s"]


@dataclass(frozen=True)
class EventInputs:
    """The features that an encoder reads of events beside their items.

    Attributes:
        features: embedded ones, in the order in which they are summed.
        time_zone: IANA name, of ``time_of_week``.
        session_gap_us: a longer gap begins a session, where the log has no session ids.
        sessions: whether the encoder part is told which session an event belongs to.
    """

    features: tuple[str, ...] = ()
    time_zone: str = "UTC"
    session_gap_us: int = 30 * MINUTE_US
    sessions: bool = False

    @classmethod
    def of(cls, events: EventSettings, encoder: EncoderSettings) -> EventInputs:
        """What these sections of a recipe say.

        Raises UsageError for an unknown encoder, and RecipeError for a length of sessions that nothing reads.
        """
        part = plugin_manager().part("encoder", encoder.name)
        gap_us = round(events.session_gap_minutes * MINUTE_US)
        inputs = cls(events.features, events.time_zone, gap_us, part.reads_sessions)
        if events.session_gap_minutes != SESSION_GAP_MINUTES and not inputs.needs_sessions:
            raise RecipeError(
                f"events.session_gap_minutes = {events.session_gap_minutes:g} is read by feature 'session' and by "
                f"encoders that read sessions, and encoder {encoder.name!r} does not; leave it out"
            )
        return inputs

    @property
    def needs_sessions(self) -> bool:
        """Whether session ids or times are needed to tell sessions apart."""
        return self.sessions or SESSION in self.features

    @property
    def needs_times(self) -> bool:
        """Whether times are needed, sessions left aside."""
        return TIME_GAP in self.features or TIME_OF_WEEK in self.features

    def lacking(self, sequences: Sequences) -> list[str]:
        """List what is read and not there: "event types", "the times of events", "values", "session ids or times"."""
        timed = sequences.timestamps is not None
        needed = {
            "event types": EVENT_TYPE in self.features and sequences.event_types is None,
            "the times of events": self.needs_times and not timed,
            "values": VALUE in self.features and sequences.values is None,
            "session ids or times": self.needs_sessions and sequences.session_ids is None and not timed,
        }
        return [what for what, lacks in needed.items() if lacks]

    def rows(self, sequences: Sequences) -> dict[str, np.ndarray]:
        """Return feature -> int64 [T]. Raises ValueError if the sequences lack what a feature needs."""
        return {name: self._rows(name, sequences) for name in self.features}

    def _rows(self, name: str, sequences: Sequences) -> np.ndarray:
        if name == TIME_GAP:
            return time_gap_buckets(sequences)
        if name == TIME_OF_WEEK:
            return hours_of_week(sequences, self.time_zone)
        if name == SESSION:
            return np.asarray(np.minimum(session_positions(sequences, self.session_gap_us), N_POSITIONS - 1))
        if name == VALUE:
            return value_buckets(sequences)
        if sequences.event_types is None:
            raise ValueError("the model reads event types, but these histories have none")
        return sequences.event_types


def event_inputs(events: EventInputs | Recipe | Sequence[str]) -> EventInputs:
    """From what a caller has: a recipe, or names of features with all else at its default.

    Raises UsageError for a name that is no feature.
    """
    if isinstance(events, EventInputs):
        return events
    if not isinstance(events, Sequence):
        return EventInputs.of(events.events, events.encoder)
    names, known = names_in(events, "events"), [EVENT_TYPE, *TABLE_ROWS]
    if stray := [name for name in names if name not in known]:
        raise UsageError(f"events = {list(names)}: there is no event feature {stray[0]!r}; there are: {known}")
    return EventInputs(names)


def time_gap_buckets(sequences: Sequences) -> np.ndarray:
    """Return int64 [T]: 0 for a user's first event, else 1 + floor(log2(1 + seconds since the event before))."""
    if sequences.timestamps is None:
        raise ValueError("the model reads time gaps, but these histories have no times")
    gaps = np.diff(sequences.timestamps, prepend=0) // MICROSECONDS["s"]
    first = sequences.offsets[:-1][sequences.lengths > 0]
    gaps[first] = 0
    buckets = 1 + np.log2(1.0 + np.maximum(gaps, 0)).astype(np.int64)
    buckets[first] = 0
    bounded: np.ndarray = np.minimum(buckets, N_TIME_GAPS - 1)
    return bounded


def hours_of_week(sequences: Sequences, time_zone: str) -> np.ndarray:
    """Return int64 [T]: hours since Monday 00:00 on the clocks of ``time_zone``, summer time included."""
    if sequences.timestamps is None:
        raise ValueError("the model reads the time of the week, but these histories have no times")
    if time_zone == "UTC":
        hours: np.ndarray = (sequences.timestamps // (60 * MINUTE_US) + EPOCH_HOUR) % N_HOURS
        return hours
    local = pd.DatetimeIndex(sequences.timestamps.astype("datetime64[us]")).tz_localize("UTC").tz_convert(time_zone)
    return np.asarray(local.dayofweek * 24 + local.hour, dtype=np.int64)


def session_starts(sequences: Sequences, gap_us: int) -> np.ndarray:
    """Return bool [T], whether each event is the first of a session.

    A session is a run of events of one session id; without ids, a run without a gap longer than ``gap_us``.
    """
    starts = np.zeros(sequences.n_events, bool)
    if sequences.session_ids is not None:
        starts[1:] = sequences.session_ids[1:] != sequences.session_ids[:-1]
    elif sequences.timestamps is not None:
        starts[1:] = np.diff(sequences.timestamps) > gap_us
    else:
        raise ValueError("the model reads sessions, but these histories have neither session ids nor times")
    starts[sequences.offsets[:-1][sequences.lengths > 0]] = True
    return starts


def session_positions(sequences: Sequences, gap_us: int) -> np.ndarray:
    """Return int64 [T], the number of events before each in its session."""
    starts = session_starts(sequences, gap_us)
    places = np.arange(len(starts))
    return places - np.maximum.accumulate(np.where(starts, places, 0))


def session_numbers(sequences: Sequences, gap_us: int) -> np.ndarray:
    """Return int64 [T], the number of sessions of the same user before that of each event."""
    passed = np.cumsum(session_starts(sequences, gap_us))
    first = passed[sequences.offsets[:-1].clip(max=max(sequences.n_events - 1, 0))] if len(passed) else passed[:0]
    return passed - np.repeat(first, sequences.lengths) if len(passed) else passed.astype(np.int64)


def value_buckets(sequences: Sequences) -> np.ndarray:
    """Return int64 [T]: 0 = no value, 1 = |value| below 2^-7, then a bucket for each half octave, first of gains."""
    if sequences.values is None:
        raise ValueError("the model reads values, but these histories have none")
    values = sequences.values.astype(np.float64)
    size = np.clip(np.nan_to_num(np.abs(values), nan=0.0), SMALLEST_VALUE, 2.0**30)
    octaves = np.minimum((2 * np.log2(size / SMALLEST_VALUE)).astype(np.int64), VALUE_HALF_OCTAVES - 1)
    buckets = 2 + octaves + np.where(values < 0, VALUE_HALF_OCTAVES, 0)
    buckets[np.abs(values) < SMALLEST_VALUE] = 1
    buckets[np.isnan(values)] = 0
    return np.asarray(buckets)
