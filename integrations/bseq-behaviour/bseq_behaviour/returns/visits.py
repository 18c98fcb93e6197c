"""Visits: the sessions of a log, one event each, for an encoder that is to say when the next one comes.

Of the log itself an encoder sees hundreds of purchases where there are a few dozen visits, and the time between two of
them only in octaves. A visit is an event of the same layout, so that every sequence encoder reads it as any event:

    item row      days since the visit before: 1 = there was none, then third octaves from an hour and a half on
    event type    events of the visit, in half octaves
    time, value   of its last event; the sum of its values

Shape letters: U users, T events, N visits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import bseq_plugin as bseq
from bseq_behaviour.columns import DAY_US

N_GAPS, SMALLEST_GAP_DAYS = 50, 1 / 16  # the last class begins at eleven years
N_SIZES = 16  # the last class begins at 2 ** 7.5 events


@dataclass(frozen=True)
class Visits:
    """Visits of U users.

    Attributes:
        histories: the visits as events, each user's oldest first; ``timestamps`` are their ends.
        starts_N: int64, when each began, microseconds.
    """

    histories: bseq.Sequences
    starts_N: np.ndarray

    def days_to_next(self, until_us: int) -> tuple[np.ndarray, np.ndarray]:
        """(float64 [N], bool [N]): days from the end of each visit to the next, True; or to ``until_us`` if there is
        none by then, False.
        """
        ends_N = np.asarray(self.histories.timestamps)
        next_N = np.append(self.starts_N[1:], until_us)
        newest = self.histories.offsets[1:][self.histories.lengths > 0] - 1
        next_N[newest] = until_us
        came_N = np.ones(len(ends_N), bool)
        came_N[newest] = False
        return np.maximum(next_N - ends_N, 0) / DAY_US, came_N


def visits_of(log: bseq.Sequences, session_gap_us: int) -> Visits:
    """A visit is a run of events of one session id; without ids, a run without a gap longer than ``session_gap_us``.

    Raises SchemaError for a log without times.
    """
    if log.timestamps is None:
        raise bseq.SchemaError("a return takes time, and this log has none; give a log with times")
    first_T = bseq.session_starts(log, session_gap_us)
    first = np.flatnonzero(first_T)
    last = np.append(first[1:], log.n_events)[: len(first)] - 1
    starts, ends = log.timestamps[first], log.timestamps[last]
    offsets = np.concatenate([[0], np.cumsum(first_T)])[log.offsets].astype(np.int64)
    sizes = 1 + np.minimum(2 * np.log2(last - first + 1), N_SIZES - 1).astype(np.int64)
    histories = bseq.Sequences(
        log.user_ids, offsets, _gap_classes(starts, ends, offsets), ends, sizes, values=_sums(log.values, first)
    )
    return Visits(histories, starts)


def _gap_classes(starts: np.ndarray, ends: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    days = np.maximum(starts[1:] - ends[:-1], 0) / DAY_US
    octaves = np.log2(np.maximum(days, SMALLEST_GAP_DAYS) / SMALLEST_GAP_DAYS)
    classes = np.ones(len(starts), np.int64)
    classes[1:] = 2 + np.minimum(3 * octaves, N_GAPS - 2).astype(np.int64)
    classes[offsets[:-1][np.diff(offsets) > 0]] = 1
    return classes


def _sums(values_T: np.ndarray | None, first: np.ndarray) -> np.ndarray | None:
    """float64 [N]; NaN where no event of a visit has a value."""
    if values_T is None or not len(first):
        return values_T
    sums: np.ndarray = np.add.reduceat(np.nan_to_num(values_T), first)
    return np.where(np.add.reduceat(~np.isnan(values_T), first), sums, np.nan)
