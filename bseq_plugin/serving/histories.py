"""What callers may give as a history, brought into ``Sequences`` that the version's encoder reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from bseq_plugin.data.event_features import EventInputs
from bseq_plugin.errors import SchemaError, UsageError
from bseq_plugin.events.events import EVENT_TYPE, ITEM, TIME, USER, VALUE, Events
from bseq_plugin.events.sequences import Sequences
from bseq_plugin.events.vocabulary import Vocabulary

History = Sequences | Events | pd.DataFrame | Sequence[object] | np.ndarray | pd.Series


def read_history(history: History, vocabulary: Vocabulary, known: Sequences, known_users: pd.Index) -> Sequences:
    """Return histories from user ids of the store, or from events given now.

    Args:
        known: the histories in the store, whose users are ``known_users`` in that order.

    Raises:
        UsageError: an unknown user, or something that is no history.
        SchemaError: events that break the format.
    """
    if isinstance(history, Sequences):
        if history.n_events and not 0 <= history.items.min() <= history.items.max() <= vocabulary.n_items:
            raise UsageError(
                f"history has item rows {history.items.min()}..{history.items.max()}; the vocabulary has rows "
                f"0..{vocabulary.n_items}: build it with the vocabulary of the retriever (retriever.model.vocabulary)"
            )
        return history
    if isinstance(history, Events):
        return Sequences.from_events(history, vocabulary)
    if isinstance(history, pd.DataFrame):
        if TIME not in history and known.timestamps is None and {USER, ITEM} <= set(history.columns):
            return Sequences.from_events(
                Events.in_order(history[USER].to_numpy(), history[ITEM].to_numpy()), vocabulary
            )
        return Sequences.from_events(Events.from_frame(history), vocabulary)
    return known.take(_places(history, known_users))


def _places(user_ids: object, known_users: pd.Index) -> np.ndarray:
    """Return int64, each user once, in the order given."""
    if isinstance(user_ids, str | bytes | int | np.integer):
        raise UsageError(f"history = {user_ids!r}; give a list of user ids: [{user_ids!r}]")
    if not isinstance(user_ids, Sequence | np.ndarray | pd.Series | pd.Index):
        raise UsageError(
            f"history is {type(user_ids).__name__}; give user ids, Events, Sequences or "
            "a DataFrame of events (user_id, item_id, timestamp)"
        )
    ids = pd.Index(user_ids).unique()
    places = known_users.get_indexer(ids)
    if (places < 0).any():
        unknown = ids[places < 0].tolist()
        raise UsageError(
            f"{len(unknown)} of {len(ids)} users are not in this store version, for example {unknown[:10]}; "
            f"its ids look like {known_users[:1].tolist()}. Give their events instead of their ids"
        )
    return np.asarray(places, dtype=np.int64)


def anonymous(item_ids: Sequence[object] | np.ndarray, vocabulary: Vocabulary, at_us: int | None) -> Sequences:
    """Return one history of items, oldest first, all at the instant ``at_us``; its user id is 0.

    Raises UsageError for anything but a list of ids.
    """
    if isinstance(item_ids, str | bytes) or np.ndim(item_ids) != 1:  # type: ignore[arg-type]
        raise UsageError(f"items = {item_ids!r}; give a list of item ids, oldest first")
    ids = np.asarray(item_ids) if len(item_ids) else vocabulary.item_ids[:0]
    if pd.isna(ids).any():
        raise UsageError("items has a missing id; leave it out")
    rows = vocabulary.item_rows(ids)
    times = None if at_us is None else np.full(len(rows), at_us, np.int64)
    return Sequences(np.zeros(1, np.int64), np.array([0, len(rows)], np.int64), rows, times)


def readable(histories: Sequences, reads: EventInputs) -> Sequences:
    """Return the histories with what the encoder reads: without event types, every event is of an unknown type, without
    values, of an unknown value, and without session ids a longer gap begins a session.

    Raises SchemaError if it reads times, or needs them to tell sessions apart, and there are none.
    """
    if EVENT_TYPE in reads.features and histories.event_types is None:
        histories = replace(histories, event_types=np.zeros(histories.n_events, np.int64))
    if VALUE in reads.features and histories.values is None:
        histories = replace(histories, values=np.full(histories.n_events, np.nan))
    if histories.timestamps is None:
        if reads.needs_times:
            raise SchemaError(
                "this version's encoder reads the times of events, but the history has none; give timestamps"
            )
        if reads.needs_sessions and histories.session_ids is None:
            raise SchemaError(
                "this version's encoder reads sessions, but the history has neither session ids nor times; give one "
                "of them"
            )
    return histories
