"""The recipe ``auto``: settings that follow from a log's size and lengths alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from bseq_plugin.data.events import ITEM, USER, Events
from bseq_plugin.schema.recipe import Recipe

AUTO = "auto"
AUTO_DESCRIPTION = "Chosen from the log: its numbers of items and events, and the lengths of its histories."
WHOLE_CATALOGUE = 4_096  # items up to which every one of them is a candidate: sampling would save little
N_CANDIDATES = 1_024
WIDE = 128  # width for more items than that: they have more to be told apart by
EVENTS_A_BATCH = 768
TARGETS = 5_000_000  # that a schedule goes through, again and again; a short log is not gone through more often than
MOST_EPOCHS, FEWEST_EPOCHS = 40, 8
VALIDATE_EVERY = 3
SMALL = 500_000  # events below which a model overfits first, whatever the lengths
MEMBERS = 3  # encoders whose scores are averaged on a small log: it costs minutes, and what they overfit to differs


def auto_recipe(events: Events) -> Recipe:
    """The recipe for ``events``. Only counts of users, items and events decide, never what comes last.

    - ``dim``: 128 for a large catalogue, else 64; each of the ``members``.
    - ``max_length``: the length that 95 of 100 histories stay within, between 50 and 200.
    - ``candidates``: the whole catalogue if it is small, else a mixed sample.
    - ``dropout``: 0.5 for a small log, 0.2 for a large one; a small one also has its labels smoothed and
      three ``members``.
    - ``epochs``: of a cosine schedule, so many that all logs learn from a like number of targets.
    - batches hold a like number of events, whatever the lengths.

    The encoder is ``causal`` with most of its first half given to the frequency filter: what is wanted next depends
    on the last few events first. docs/results.md has what it reaches.
    """
    lengths = events.frame[USER].value_counts().to_numpy()
    n_items = int(events.frame[ITEM].nunique())
    max_length = int(np.clip(np.ceil(np.percentile(lengths, 95)), 50, 200))
    targets = int(np.minimum(lengths, max_length).sum())
    values: dict[str, Any] = {
        "encoder": "causal",
        "encoder_options": {"filter_weight": 0.7, "filter_half_life": 1.0},
        "max_length": max_length,
        "dropout": 0.5 if len(events) < SMALL else 0.2,
        "batch_events": max(EVENTS_A_BATCH, max_length),
        "epochs": int(np.clip(TARGETS // targets, FEWEST_EPOCHS, MOST_EPOCHS)),
        "schedule": "cosine",
        "table_learning_rate": 0.2,
    }
    if len(events) < SMALL:
        values |= {"loss_options": {"label_smoothing": 0.1}, "members": MEMBERS}
    # a cosine schedule is best near its end: looking at every epoch on the way takes time and finds nothing
    values |= {"patience": values["epochs"], "validate_every": VALIDATE_EVERY}
    if n_items > WHOLE_CATALOGUE:
        values |= {"dim": WIDE, "candidates": N_CANDIDATES, "sampling": "mixed"}
    return Recipe(**values)
