"""The held-out part of a log: what may be known, what is to be predicted, and as of when."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from bseq_plugin.data.prepare import evaluation_set
from bseq_plugin.data.splits import EvaluationSet, training_part
from bseq_plugin.errors import UsageError
from bseq_plugin.events.events import instant_us
from bseq_plugin.events.sequences import Sequences
from bseq_plugin.recipe.data import SplitSettings

Part = Literal["test", "validation"]
Seen = Literal["keep", "mask"]


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
