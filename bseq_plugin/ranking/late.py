"""Events that happened before an instant but arrived after it: a model that serves could not have known them.

Shape letters: R requests, T events.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bseq_plugin.events.sequences import Sequences


def without_late(
    log: Sequences, starts_R: np.ndarray, ends_R: np.ndarray, at_R: np.ndarray
) -> tuple[Sequences, np.ndarray, np.ndarray]:
    """The same histories without events whose ``created`` lies after their request's ``at``.

    Requests that no late event touches keep their places in the log; the events of the others are appended to it.
    ``starts_R`` are the beginnings of the users' histories.
    """
    if log.created is None or not log.n_events:
        return log, starts_R, ends_R
    touched = np.flatnonzero((ends_R > starts_R) & (log.latest_created[np.maximum(ends_R - 1, 0)] > at_R))
    if not len(touched):
        return log, starts_R, ends_R
    lengths = (ends_R - starts_R)[touched]
    first = np.cumsum(lengths) - lengths
    places = np.arange(lengths.sum()) + np.repeat(starts_R[touched] - first, lengths)
    known = log.created[places] <= np.repeat(at_R[touched], lengths)
    kept = np.concatenate([[0], np.cumsum(known)])
    starts_R, ends_R = starts_R.copy(), ends_R.copy()
    starts_R[touched] = log.n_events + kept[first]
    ends_R[touched] = log.n_events + kept[first + lengths]
    rows = np.concatenate([np.arange(log.n_events), places[known]])
    # the offsets tell users apart, which nobody asks of a log that is read by places
    return replace(log.rows(rows), offsets=np.array([0, len(rows)])), starts_R, ends_R
