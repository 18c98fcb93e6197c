"""What callers may give as a history, brought into ``Sequences`` that the version's encoder reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from bseq_plugin.data.event_features import EventInputs
from bseq_plugin.errors import SchemaError, UsageError
from bseq_plugin.events.events import EVENT_TYPE, ITEM, TIME, USER, VALUE, Events
from bseq_plugin.events.frames import of_arrow, speaks_arrow
from bseq_plugin.events.ids import ids_like
from bseq_plugin.events.log_options import LogOptions
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
    if speaks_arrow(history) and hasattr(history, "columns"):  # a table, where an array is one of ids
        return Sequences.from_events(Events.from_relation(of_arrow(history), LogOptions()), vocabulary)
    return known.take(_places(history, known_users))


def _places(user_ids: object, known_users: pd.Index) -> np.ndarray:
    """Return int64, each user once, in the order given."""
    ids = pd.Index(ids_like(user_ids, known_users.to_numpy(), "history")).unique()
    places = known_users.get_indexer(ids)
    if (places < 0).any():
        unknown = ids[places < 0].tolist()
        raise UsageError(
            f"{len(unknown)} of {len(ids)} users are not in this store version, for example {unknown[:10]}; "
            f"its ids look like {known_users[:1].tolist()}. Give their events instead of their ids"
        )
    return np.asarray(places, dtype=np.int64)


def anonymous(item_ids: object, vocabulary: Vocabulary, at_us: int | None) -> Sequences:
    """Return one history of items, oldest first, all at the instant ``at_us``; its user id is 0.

    Raises UsageError or SchemaError for anything but a list of ids.
    """
    rows = vocabulary.item_rows(ids_like(item_ids, vocabulary.item_ids, "items"))
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
