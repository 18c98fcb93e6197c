"""The splits of a log into what may be known and what is to be predicted, as of when: leave-one-out, and by time.

Shape letters: U users evaluated, N targets in all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bseq_plugin.errors import SchemaError, UsageError
from bseq_plugin.events.events import DAY_US, instant_us
from bseq_plugin.events.sequences import Sequences
from bseq_plugin.recipe.data import SplitSettings

Part = Literal["test", "validation"]
Seen = Literal["keep", "mask"]

# events at the end of a history that leave-one-out keeps for itself: the validation target and the test target
HELD_OUT = 2
MIN_EVENTS = HELD_OUT + 1


@dataclass(frozen=True)
class EvaluationSet:
    """Histories and the items that came after them; every user has at least one event and one target.

    Attributes:
        histories: what may be known, U users. Events of unknown items (row 0) are still there.
        target_offsets: int64 [U + 1], where each user's targets begin; the last entry is N.
        target_items: int64 [N], vocabulary rows >= 1, distinct and ascending within a user.
    """

    histories: Sequences
    target_offsets: np.ndarray
    target_items: np.ndarray

    @property
    def n_users(self) -> int:
        """The number of users, U."""
        return self.histories.n_users

    @property
    def n_targets(self) -> int:
        """The number of targets, N."""
        return len(self.target_items)

    @property
    def target_users(self) -> np.ndarray:
        """The place (0..U-1) of each target's user, int64 [N]."""
        return np.repeat(np.arange(self.n_users), np.diff(self.target_offsets))

    def new_items_only(self) -> EvaluationSet:
        """Return only the targets that are not in their user's history; users left without a target are dropped."""
        width = _key_width(self.histories.items, self.target_items)
        seen = self.histories.user_index * width + self.histories.items
        keys = self.target_users * width + self.target_items
        return _with_targets(self.histories, keys[~np.isin(keys, seen)], width)


def training_part(sequences: Sequences) -> Sequences:
    """Return what leave-one-out may train on: every history without its last two events.

    All users stay; one with two events or fewer has nothing left.
    """
    return sequences.without_last(HELD_OUT)


def leave_one_out(sequences: Sequences, part: Part) -> EvaluationSet:
    """Split off single targets: the last event of each history for the test, the one before it for the validation.

    The history is everything before the target, so that the test may know the validation event. Dropped from the
    evaluation, in both parts alike: users with fewer than 3 events (they would have nothing to train on), and in the
    part concerned users whose target is an unknown item.

    Raises:
        UsageError: for another ``part``.
        SchemaError: if nobody is left.
    """
    if part not in ("validation", "test"):
        raise UsageError(f"part = {part!r}; use 'validation' or 'test'")
    users = np.flatnonzero(sequences.lengths >= MIN_EVENTS)
    ends = sequences.offsets[1:][users] - (1 if part == "test" else HELD_OUT)
    targets = sequences.items[ends]
    known = targets > 0
    if not known.any():
        raise SchemaError(
            f"nobody of {sequences.n_users} users has {MIN_EVENTS} events or more and a known item as {part} target; "
            "the leave-one-out split needs longer histories"
        )
    users, ends = users[known], ends[known]
    histories = sequences.slices(users, sequences.offsets[:-1][users], ends)
    return EvaluationSet(histories, np.arange(len(users) + 1, dtype=np.int64), targets[known])


def time_window(sequences: Sequences, start_us: int, horizon_days: float) -> EvaluationSet:
    """Split at an instant: histories strictly before it; targets are the distinct known items in [start, start +
    horizon).

    Dropped: users without an event before the cut and users without a known item in the window. The vocabulary must
    have been built from events before ``start_us``: this function can't see what it was counted on.

    Args:
        sequences: a log with times.
        start_us: the cut, microseconds since the epoch, UTC.
        horizon_days: length of the window, days of 24 hours.

    Raises:
        UsageError: if ``horizon_days`` is not a positive number.
        SchemaError: if the log has no times, or nobody is left.
    """
    if not (math.isfinite(horizon_days) and horizon_days > 0):
        raise UsageError(f"horizon_days = {horizon_days}; give a positive number of days")
    past = sequences.between(None, start_us)
    window = sequences.between(start_us, start_us + round(horizon_days * DAY_US)).known()
    width = _key_width(window.items)
    keys = np.unique(window.user_index * width + window.items)
    evaluated = _with_targets(past, keys[past.lengths[keys // width] > 0], width)
    if evaluated.n_users == 0:
        at = np.datetime64(start_us, "us")
        raise SchemaError(
            f"nobody has both an event before {at} UTC and a known item within {horizon_days:g} days after it; "
            "choose a cut inside the log"
        )
    return evaluated


def _key_width(*items: np.ndarray) -> int:
    """Return one more than the largest row, so that ``user * width + row`` names a pair."""
    return max((int(rows.max(initial=0)) for rows in items), default=0) + 1


def _with_targets(histories: Sequences, keys: np.ndarray, width: int) -> EvaluationSet:
    """Make targets of ascending, distinct ``user * width + row`` keys; users without one are dropped."""
    counts = np.bincount(keys // width, minlength=histories.n_users)
    users = np.flatnonzero(counts)
    offsets = np.concatenate([[0], np.cumsum(counts[users])]).astype(np.int64)
    kept = histories if len(users) == histories.n_users else histories.take(users)
    return EvaluationSet(kept, offsets, (keys % width).astype(np.int64))


def training_histories(sequences: Sequences, split: SplitSettings) -> Sequences:
    """Return the part of whole histories that may be trained on, under a split that ``prepare`` has resolved."""
    if split.kind == "time":
        return sequences.between(None, instant_us(split.validation_at, "validation_at"))
    return sequences if split.kind == "none" else training_part(sequences)


def validation_set(sequences: Sequences, split: SplitSettings) -> EvaluationSet | None:
    """Return what the best epoch is chosen on; None if nothing is held out."""
    return None if split.kind == "none" else evaluation_set(sequences, split, "validation")


def evaluation_set(sequences: Sequences, split: SplitSettings, part: Part) -> EvaluationSet:
    """Return the held-out part of a log, under a split that ``prepare`` has resolved.

    With ``mask_seen`` the targets are the items new to the user.
    """
    if split.kind == "none":
        raise SchemaError(
            "split.kind = 'none' holds nothing out; train with split.kind = 'time' or 'leave_one_out' to evaluate"
        )
    if split.kind == "time":
        at = split.validation_at if part == "validation" else split.test_at
        held_out = time_window(sequences, instant_us(at, f"{part}_at"), split.horizon_days)
    else:
        held_out = leave_one_out(sequences, part)
    if not split.mask_seen:
        return held_out
    new = held_out.new_items_only()
    if new.n_users == 0:
        raise SchemaError(
            f"none of the {held_out.n_users} users of the {part} has a target that is new to them; "
            "count items seen before as well: split.mask_seen = false"
        )
    return new


@dataclass(frozen=True)
class HeldOut:
    """What a model is measured on, or a blend is fitted on.

    Attributes:
        evaluation: histories and what came after them, in rows of the model's vocabulary.
        known: what baselines and candidate sources may learn from: everything before the part of a time split, else
            what the model was trained on.
        at_us: where a time split begins the part, microseconds UTC; None with another split.
        seen: "keep" if items of the history may be recommended, "mask" if not.
    """

    evaluation: EvaluationSet
    known: Sequences
    at_us: int | None
    seen: Seen

    @classmethod
    def of(cls, sequences: Sequences, split: SplitSettings, part: Part) -> HeldOut:
        """Return a part of a log, under a split that ``prepare`` has resolved.

        Raises UsageError for another part, SchemaError if the split holds nothing out.
        """
        if part not in ("test", "validation"):
            raise UsageError(f"split {part!r}: use test or validation")
        evaluation = evaluation_set(sequences, split, part)
        at_us = None
        if split.kind == "time":
            at_us = instant_us(split.validation_at if part == "validation" else split.test_at)
        known = training_part(sequences) if at_us is None else sequences.between(None, at_us)
        return cls(evaluation, known, at_us, "mask" if split.kind != "none" and split.mask_seen else "keep")

    @property
    def request_us(self) -> int | np.ndarray | None:
        """Return when candidates are asked for: the cut, else int64 [U], each user's newest event; None without times.

        A log's time split has one request time for all; leave-one-out asks each user when their history ends.
        """
        histories = self.evaluation.histories
        if self.at_us is not None or histories.timestamps is None:
            return self.at_us
        newest_U: np.ndarray = histories.timestamps[histories.offsets[1:] - 1]  # each evaluated user has an event
        return newest_U
