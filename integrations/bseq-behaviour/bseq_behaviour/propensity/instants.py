"""Instants of the past at which something is learned and judged."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

import bseq_plugin as bseq
from bseq_behaviour.columns import DAY_US

STEP_US = 7 * DAY_US


@dataclass(frozen=True)
class Instants:
    """When something is trained and judged; no training window reaches the instant it is judged at."""

    train_us: tuple[int, ...]
    validation_us: int

    def latest(self, n: int) -> Instants:
        """Return the same with only the latest ``n`` instants to train at. Raises UsageError for ``n`` below 1."""
        if n < 1:
            raise bseq.UsageError(f"{n} instants to train at; give 1 or more")
        return Instants(self.train_us[-n:], self.validation_us)


def past_instants(
    model: bseq.InterestModel, log: bseq.Sequences, window_us: int, log_end_us: int, allow_future_model: bool = False
) -> Instants:
    """Return the latest instant with a whole window after it to judge at, and for training every 7 days before that.

    They begin with the end of the model's own training; ``allow_future_model`` takes earlier ones too.

    Raises SchemaError if the log after the model's training is too short.
    """
    validation_us = log_end_us - window_us
    until_us = model.trained_until_us
    first_us = int(np.asarray(log.timestamps).min()) + STEP_US
    if until_us is not None and not allow_future_model:
        first_us = max(first_us, until_us + 1)
    last_us = validation_us - window_us
    if last_us < first_us:
        raise bseq.SchemaError(
            f"the log has {max(0, log_end_us - first_us) / DAY_US:.0f} days after the model's training; two windows of "
            f"{window_us / DAY_US:g} days are needed, one to train the heads and one to judge them: hold more out when "
            "training (split = 'time', an earlier validation_at), or take instants that the model has seen as well (in "
            "sample), whose vectors know what came after"
        )
    return Instants(tuple(range(last_us, first_us - 1, -STEP_US))[::-1], validation_us)


def log_until(log: bseq.Sequences, at_us: int | None) -> tuple[bseq.Sequences, int]:
    """Return the events before an instant, by default the end of the log, and that instant, up to which all is known.

    Raises:
        SchemaError: a log without times, or without an event before the instant.
        UsageError: an instant more than a day after the newest event.
    """
    if log.timestamps is None or log.n_events == 0:
        raise bseq.SchemaError("what comes after an instant is asked: give a log with times, and events in it")
    end_us = int(log.timestamps.max()) + 1
    now_us = end_us if at_us is None else at_us
    if now_us > end_us + DAY_US:  # nobody knows who came in between, and that nobody did would be taken for known
        end, asked_at = (pd.Timestamp(us, unit="us", tz="UTC") for us in (end_us, now_us))
        raise bseq.UsageError(
            f"{asked_at} is more than a day after the newest event ({end}); give a log up to that instant"
        )
    log = log.known_at(now_us)
    if log.n_events == 0:
        raise bseq.SchemaError("nobody has an event before that instant; choose a later one")
    return log, now_us
