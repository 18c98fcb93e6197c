"""Behaviour as language: a history becomes a text that a Transformer can read, the newest first.

    2 days ago bought ground beef, hamburger buns and 9 more; 5 days before that with coupon bought soft drinks

Shape letters: B users, T events of all histories.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import Field

import bseq_plugin as bseq

DAY_US = 86_400_000_000
HOUR_US = 3_600_000_000


class TemplateOptions(bseq.PartOptions):
    """How much of a history is told, and in which words."""

    max_sessions: int = Field(12, ge=1, description="sessions that are told, the newest ones")
    items_per_session: int = Field(3, ge=1, description="items that are named; of the others it is told how many")
    event_words: Mapping[str, str] = Field(default_factory=dict, description="event type -> the words for it")


def behaviour_texts(
    histories: bseq.Sequences,
    vocabulary: bseq.Vocabulary,
    item_texts: Sequence[str],
    at_us: int,
    options: TemplateOptions | None = None,
) -> list[str]:
    """B texts; one of a user without events is empty.

    A session is a run of events with one ``session_id``, or without these of one time. Within it, events of one type
    stand together, in the order in which the types came; an item that comes twice is named once.

    Args:
        histories: with times, oldest event first, everything before ``at_us``.
        item_texts: V + 1, by vocabulary row; row 0 is the unknown item's.
        at_us: microseconds since the epoch, UTC; gaps are counted from here.

    Raises:
        UsageError: no times, an event at or after ``at_us``, another number of item texts, or words for an event type
            that there is not.
    """
    options = options or TemplateOptions()
    times = histories.timestamps
    if times is None:
        raise bseq.UsageError("behaviour is told with its times, and these histories have none")
    if len(times) and int(times.max()) >= at_us:
        raise bseq.UsageError(f"a history has an event at {int(times.max())}, not before at_us = {at_us}; cut it first")
    if len(item_texts) != vocabulary.n_items + 1:
        raise bseq.UsageError(
            f"there are {len(item_texts)} item texts; wanted {vocabulary.n_items + 1}: one for each row of the "
            "vocabulary, row 0 included"
        )
    strange = sorted(set(options.event_words) - set(vocabulary.event_types))
    if strange:
        raise bseq.UsageError(f"event_words names {strange}; the event types are {list(vocabulary.event_types)}")
    words = _type_words(vocabulary, options) if histories.event_types is not None else None
    return [
        _told(histories, slice(int(a), int(b)), item_texts, words, at_us, options)
        for a, b in zip(histories.offsets[:-1], histories.offsets[1:], strict=True)
    ]


def _type_words(vocabulary: bseq.Vocabulary, options: TemplateOptions) -> list[str]:
    """By row; the unknown type has none."""
    return ["", *(options.event_words.get(name, name) for name in vocabulary.event_types)]


def _told(
    histories: bseq.Sequences,
    events: slice,
    item_texts: Sequence[str],
    words: list[str] | None,
    at_us: int,
    options: TemplateOptions,
) -> str:
    times, items = histories.timestamps[events], histories.items[events]  # type: ignore[index]
    if not len(items):
        return ""
    sessions = times if histories.session_ids is None else histories.session_ids[events]
    starts = np.flatnonzero(np.concatenate([[True], sessions[1:] != sessions[:-1]]))
    types = np.zeros(len(items), np.int64) if words is None else histories.event_types[events]  # type: ignore[index]
    told, after_us = [], at_us
    for first, last in reversed(list(zip(starts, [*starts[1:], len(items)], strict=True))[-options.max_sessions :]):
        gap = _gap(after_us - int(times[last - 1]), "ago" if after_us == at_us else "before that")
        what = _session(items[first:last], types[first:last], item_texts, words, options.items_per_session)
        told.append(f"{gap} {what}")
        after_us = int(times[first])
    return "; ".join(told)


def _gap(us: int, direction: str) -> str:
    if us >= DAY_US:
        days = us // DAY_US
        return f"{days} day{'s' * (days != 1)} {direction}"
    hours = us // HOUR_US
    return f"{hours} hour{'s' * (hours != 1)} {direction}"


def _session(
    items: np.ndarray, types: np.ndarray, item_texts: Sequence[str], words: list[str] | None, most: int
) -> str:
    parts = []
    for kind in dict.fromkeys(types.tolist()):
        names = list(dict.fromkeys(item_texts[row] for row in items[types == kind].tolist()))
        named = [name for name in names if name][:most]
        more = len(names) - len(named)
        told = ", ".join(named)
        if more:
            told = f"{told} and {more} more" if told else f"{more} unknown"
        parts.append(f"{words[kind]} {told}".strip() if words is not None else told)
    return ", ".join(parts)
