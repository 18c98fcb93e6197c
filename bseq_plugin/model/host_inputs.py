"""What a host is published with beside itself: looked at on every rank, before any of them waits for another."""

from __future__ import annotations

import hashlib
from dataclasses import fields
from typing import TypeVar

import numpy as np
import pandas as pd

from bseq_plugin.distributed import World
from bseq_plugin.errors import SchemaError, UsageError
from bseq_plugin.events.events import EVENT_TYPE, instant_us
from bseq_plugin.events.sequences import EVENT_COLUMNS, Sequences
from bseq_plugin.events.vocabulary import Vocabulary
from bseq_plugin.model.encoder import NO_POPULARITY, SequenceInterestEncoder

Given = TypeVar("Given", Vocabulary, Sequences)


def checked_inputs(
    vocabulary: Vocabulary | None, histories: Sequences | None, trained_until: object
) -> tuple[Vocabulary, Sequences, int | None]:
    """Return the vocabulary, the histories, and ``trained_until`` in microseconds.

    Raises UsageError for one that is missing, of another type, without an item or an event, or with ids that no store
    can hold; SchemaError for an instant that is none.
    """
    if vocabulary is None or histories is None:
        raise UsageError("a host is published with the histories to serve and its items: histories=, vocabulary=")
    vocabulary, histories = _of_type(vocabulary, Vocabulary), _of_type(histories, Sequences)
    check_ids(vocabulary.item_ids, "vocabulary", "items")
    check_ids(histories.user_ids, "histories", "users")
    if not vocabulary.n_items or len(vocabulary.item_counts) != vocabulary.n_items:
        raise UsageError(
            f"the vocabulary has {vocabulary.n_items} items and {len(vocabulary.item_counts)} item_counts; give the "
            "items that the host's ids are rows of, and how often each comes up"
        )
    if not histories.n_events:
        raise UsageError("no user of the histories has an event; give the users to serve, with their events")
    _check_columns(histories)
    return vocabulary, histories, None if trained_until is None else instant_us(trained_until, "trained_until")


def _of_type(value: Given, kind: type[Given]) -> Given:
    if not isinstance(value, kind):
        name = {Vocabulary: "vocabulary", Sequences: "histories"}[kind]
        raise UsageError(f"{name} is a {type(value).__name__}; give bseq.{kind.__name__}")
    return value


def check_ids(ids: np.ndarray, where: str, whose: str) -> None:
    """Raise UsageError for ids that are neither integers nor strings: a store would not give them back."""
    if not isinstance(ids, np.ndarray):
        raise UsageError(f"{where}: ids of {whose} are a {type(ids).__name__}; give a numpy array")
    kind = pd.api.types.infer_dtype(ids, skipna=False)
    if not np.issubdtype(ids.dtype, np.integer) and kind not in ("string", "empty"):
        example = ids.tolist()[0]
        raise UsageError(f"{where}: ids of {whose} are {kind}, for example {example!r}; give integers or strings")


def _check_columns(histories: Sequences) -> None:
    offsets, n = histories.offsets, histories.n_events
    if len(offsets) != histories.n_users + 1 or offsets[0] != 0 or offsets[-1] != n or (np.diff(offsets) < 0).any():
        raise UsageError(
            f"histories: offsets don't cut {n} events into those of {histories.n_users} users; they ascend from 0 to "
            f"{n}, one more than users"
        )
    for name in EVENT_COLUMNS:
        column = getattr(histories, name)
        if column is not None and len(column) != n:
            raise UsageError(f"histories: {name} has {len(column)} values for {n} events; give each event one")
        if column is not None and name != "values" and not np.issubdtype(column.dtype, np.integer):
            raise UsageError(f"histories: {name} is {column.dtype}; give int64")


def _check_rows(histories: Sequences, column: str, n: int, what: str) -> None:
    rows_T = getattr(histories, column)
    if rows_T is None or not len(wrong := np.flatnonzero((rows_T < 0) | (rows_T > n))):
        return
    place, user = int(wrong[0]), int(histories.user_index[wrong[0]])
    raise UsageError(
        f"histories: {column} of user {histories.user_ids.tolist()[user]!r} have {int(rows_T[place])} in place "
        f"{place - int(histories.offsets[user])}, which is no row of the vocabulary: it has {n} {what}, rows 1 to {n}, "
        "and 0 for unknown ones; make histories of it, bseq.Sequences.from_events(events, vocabulary)"
    )


def require_same(vocabulary: Vocabulary, histories: Sequences, trained_until_us: int | None, here: World) -> None:
    """Raise UsageError on every rank unless all have been given the same: a rank's own users would be lost, and one
    with fewer of them would leave the others waiting. Collective.
    """
    said = {
        "histories": (_digest(histories), f"{histories.n_users} users with {histories.n_events} events"),
        "vocabulary": (_digest(vocabulary), f"{vocabulary.n_items} items"),
        "trained_until": (str(trained_until_us), str(trained_until_us)),
    }
    of_ranks = here.gather(said)
    for name in said:
        if len({of_rank[name][0] for of_rank in of_ranks}) > 1:
            told = "; ".join(f"rank {rank}: {of_rank[name][1]}" for rank, of_rank in enumerate(of_ranks))
            raise UsageError(
                f"every rank must pass the same {name}, and they differ ({told}); nothing is kept: give all ranks "
                "the whole of it, in one order, not a share each"
            )


def _digest(given: Vocabulary | Sequences) -> str:
    """Return a hexadecimal sha256 of all columns."""
    digest = hashlib.sha256()
    for field in fields(given):
        values = getattr(given, field.name)
        digest.update(f"{field.name} {getattr(values, 'dtype', None)}".encode())
        if isinstance(values, np.ndarray):
            numbers = pd.util.hash_array(values) if values.dtype == object else values
            digest.update(np.ascontiguousarray(numbers).view(np.uint8).data)
        else:
            digest.update(repr(values).encode())
    return digest.hexdigest()


def check_fits(encoder: SequenceInterestEncoder, vocabulary: Vocabulary, histories: Sequences) -> None:
    """Raise UsageError for a vocabulary or a recipe that is not that of a host's encoder, and for histories that are
    not in rows of the vocabulary; SchemaError for histories without what the encoder reads.
    """
    if encoder.recipe.popularity_days:
        raise UsageError(NO_POPULARITY)
    if encoder.recipe.items.encoders:
        raise UsageError("a recipe with items.encoders is finished by bseq.train; leave them out in a host")
    if vocabulary.n_items != encoder.n_items:
        raise UsageError(
            f"the vocabulary has {vocabulary.n_items} items, the encoder's item table {encoder.n_items + 1} rows; give "
            "the vocabulary that the host's ids are rows of: the table has one row more, row 0 for unknown items"
        )
    types = encoder.rows.get(encoder.keys[EVENT_TYPE]) if EVENT_TYPE in encoder.keys.features else None
    if types is not None and types[1] != len(vocabulary.event_types) + 1:
        raise UsageError(
            f"the vocabulary has {len(vocabulary.event_types)} event types, the encoder was made with n_event_types = "
            f"{types[1] - 1}; give the vocabulary that the host's event types are rows of"
        )
    _check_rows(histories, "items", vocabulary.n_items, "items")
    _check_rows(histories, "event_types", len(vocabulary.event_types), "event types")
    if lacking := encoder.event_embedder.inputs.lacking(histories):
        raise SchemaError(f"the encoder reads {' and '.join(lacking)}, but the histories have none; give them with it")
