"""From candidate rows to requests, and from a log to what each request may know.

Shape letters: N candidate rows, R requests (one user at one instant), T events.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from bseq_plugin.data.histories import arrived, require_times, spans_before
from bseq_plugin.errors import SchemaError, UsageError
from bseq_plugin.events.events import DAY_US, ITEM, USER, Events, instant_us
from bseq_plugin.events.ids import as_ids, is_text, require_kind
from bseq_plugin.events.sequences import Sequences, places_of_runs
from bseq_plugin.events.vocabulary import Vocabulary
from bseq_plugin.ranking.table import REQUEST

AT = "at"
RETRIEVAL_COLUMNS = ("rank", "score", "interest", "n_interests")


@dataclass(frozen=True)
class CandidateRows:
    """Validated candidates, in input order.

    Attributes:
        user_ids, item_ids: int64 or str [N].
        at_N: int64, microseconds UTC.
        retrieval: float32 [N] for each of ``RETRIEVAL_COLUMNS`` that the candidates have.
        request_ids: int64 or str [N], passed through for logs that are trained on later; None without the column.
    """

    user_ids: pd.Series
    item_ids: pd.Series
    at_N: np.ndarray
    retrieval: dict[str, np.ndarray]
    request_ids: pd.Series | None = None

    @classmethod
    def read(cls, candidates: pd.DataFrame, at: object | None) -> CandidateRows:
        """Raises UsageError for no rows or an ambiguous ``at``, SchemaError naming column, row and remedy."""
        for name in (USER, ITEM):
            if name not in candidates:
                raise SchemaError(f"candidates lack column {name!r}; found {[str(c) for c in candidates.columns]}")
        if candidates.empty:
            raise UsageError("there are no candidates: the table has no rows")
        user_ids, item_ids = (pd.Series(as_ids(candidates[name], f"column {name!r}")) for name in (USER, ITEM))
        retrieval = {name: _numbers(candidates[name]) for name in RETRIEVAL_COLUMNS if name in candidates}
        requests = _requests(candidates[REQUEST]) if REQUEST in candidates else None
        return cls(user_ids, item_ids, _instants(candidates, at), retrieval, requests)

    def __len__(self) -> int:
        return len(self.at_N)


@dataclass(frozen=True)
class Requests:
    """The distinct (user, at) of the candidates, by user and time, so that the order of the rows can't matter.

    Attributes:
        user_ids: int64 or str objects [R].
        at_R: int64, microseconds UTC.
        request_N: int64, the request of each candidate row.
    """

    user_ids: np.ndarray
    at_R: np.ndarray
    request_N: np.ndarray

    @classmethod
    def of(cls, rows: CandidateRows) -> Requests:
        """Group candidate rows."""
        user_N, users = pd.factorize(rows.user_ids, sort=True)
        instants, at_N = np.unique(rows.at_N, return_inverse=True)
        pairs, request_N = np.unique(user_N.astype(np.int64) * len(instants) + at_N, return_inverse=True)
        user_ids = users.to_numpy()[pairs // len(instants)]
        user_ids = user_ids if np.issubdtype(user_ids.dtype, np.integer) else user_ids.astype(object)
        return cls(user_ids, instants[pairs % len(instants)], request_N.astype(np.int64))


@dataclass(frozen=True)
class Histories:
    """What each request may know: events strictly before its ``at``.

    Attributes:
        log: the events, sorted by user and time; ``user_ids`` are those of the requests.
        starts_R, ends_R: int64, the places of each request's events in the flat arrays of ``log``.
    """

    log: Sequences
    starts_R: np.ndarray
    ends_R: np.ndarray

    @classmethod
    def cut(cls, log: Sequences, requests: Requests, ttl_days: float | None) -> Histories:
        """Find the events of every request; none for an unknown user, or if the latest is older than ``ttl_days``.

        An event that arrived after a request's ``at`` (``log.created``) was not known then, and is left out.
        """
        starts_R, ends_R = spans_before(log, pd.Index(requests.user_ids), requests.at_R)
        log, starts_R, ends_R = _without_late(log, starts_R, ends_R, requests.at_R)
        if ttl_days is not None and log.n_events:
            newest_R = np.asarray(log.timestamps)[np.maximum(ends_R - 1, 0)]
            stale_R = requests.at_R - newest_R > ttl_days * DAY_US
            starts_R = np.where(stale_R, ends_R, starts_R)
        return cls(replace(log, user_ids=requests.user_ids), starts_R, ends_R)

    def latest(self, length: int) -> Sequences:
        """One history a request: its latest ``length`` events, oldest first."""
        starts_R = np.maximum(self.starts_R, self.ends_R - length)
        return self.log.slices(np.arange(len(self.ends_R)), starts_R, self.ends_R)


def relevant_events(events: Events, rows: CandidateRows) -> Events:
    """Only what these candidates can read: their users' events, strictly before the latest ``at`` and known then.

    Raises SchemaError for events without times, or for user ids of another kind than the candidates'.
    """
    require_times(events.has_times)
    require_kind(pd.Index(rows.user_ids[:1]), events.frame[USER][:1].to_numpy(), "candidates' user_id")
    theirs = Events(events.frame[events.frame[USER].isin(rows.user_ids.unique())])
    return theirs.known_at(int(rows.at_N.max()))


def read_log(events: Events | Sequences, vocabulary: Vocabulary) -> Sequences:
    """The log sorted by user and time; ``Sequences`` must be sorted already and hold rows of ``vocabulary``.

    Raises SchemaError for events without times or out of order, UsageError for something that is no log of events.
    """
    if isinstance(events, Events):
        require_times(events.has_times)
        return Sequences.from_events(events, vocabulary)
    if not isinstance(events, Sequences):
        raise UsageError(f"events is a {type(events).__name__}; read it first: bseq_plugin.read_events(source)")
    require_times(events.timestamps is not None)
    if events.n_events and int(events.items.max()) > vocabulary.n_items:
        raise UsageError(
            f"the sequences have item row {int(events.items.max())}, the model's vocabulary ends at "
            f"{vocabulary.n_items}; build them with it: Sequences.from_events(events, model.vocabulary)"
        )
    _ = events.known_users  # refuses a log that is not in order here, not at the first request
    return events


def _instants(candidates: pd.DataFrame, at: object | None) -> np.ndarray:
    """int64 [N] microseconds UTC, from the argument or the column."""
    if at is not None:
        if AT in candidates:
            raise UsageError("`at` is given and the candidates have a column 'at'; pass at=None or drop the column")
        return np.full(len(candidates), instant_us(at), np.int64)
    if AT not in candidates:
        raise UsageError("say for which instant: pass at=, a time with a time zone, or candidates with a column 'at'")
    column = candidates[AT].reset_index(drop=True)
    if not isinstance(column.dtype, pd.DatetimeTZDtype):
        raise SchemaError(
            f"candidates' column 'at' has dtype {column.dtype}; it needs times with a time zone: "
            "pd.to_datetime(df['at'], utc=True) if they are in UTC"
        )
    if column.isna().any():
        raise SchemaError(f"candidates' column 'at' has a null in row {int(column.isna().argmax())}; drop or fill it")
    return np.asarray(column.dt.tz_convert("UTC").dt.as_unit("us").astype("int64"))


def _requests(column: pd.Series) -> pd.Series:
    """Ids of requests, passed through: integers or text, some may be missing."""
    column = column.reset_index(drop=True)
    there = column[column.notna()]
    ids = as_ids(there, f"column {REQUEST!r}")
    if len(there) == len(column):
        return pd.Series(ids)
    found = pd.Series([None] * len(column), dtype=object if is_text(ids) else "Int64")
    found[there.index] = ids
    return found


def _numbers(column: pd.Series) -> np.ndarray:
    try:
        numbers = column.to_numpy(np.float32, na_value=np.nan)
    except (ValueError, TypeError) as error:
        raise SchemaError(f"candidates' column {str(column.name)!r} must hold numbers: {error}") from None
    if (infinite := np.isinf(numbers)).any():
        row = int(infinite.argmax())
        raise SchemaError(
            f"candidates' column {str(column.name)!r} has {numbers[row]} in row {row} (counted from 0); give a number, "
            "or leave it empty"
        )
    return numbers


def _without_late(
    log: Sequences, starts_R: np.ndarray, ends_R: np.ndarray, at_R: np.ndarray
) -> tuple[Sequences, np.ndarray, np.ndarray]:
    """Return the same histories without events that had not arrived at their request's ``at``.

    Requests that no late event touches keep their places in the log; the events of the others are appended to it.
    """
    late_R, known_T = arrived(log, starts_R, ends_R, at_R)
    if not len(late_R):
        return log, starts_R, ends_R
    lengths = (ends_R - starts_R)[late_R]
    first = np.cumsum(lengths) - lengths
    rows = places_of_runs(starts_R[late_R], ends_R[late_R])
    kept = np.concatenate([[0], np.cumsum(known_T)])
    starts_R, ends_R = starts_R.copy(), ends_R.copy()
    starts_R[late_R] = log.n_events + kept[first]
    ends_R[late_R] = log.n_events + kept[first + lengths]
    rows = np.concatenate([np.arange(log.n_events), rows[known_T]])
    # the offsets tell users apart, which nobody asks of a log that is read by places
    return replace(log.rows(rows), offsets=np.array([0, len(rows)])), starts_R, ends_R
