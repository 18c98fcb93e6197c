"""What ranking features need of a trained model."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bseq_plugin.errors import PluginError, UsageError
from bseq_plugin.events.sequences import Sequences
from bseq_plugin.events.vocabulary import Vocabulary


class FeatureModel(Protocol):
    """What the features need of a trained model; ``InterestModel`` has it."""

    @property
    def recipe(self) -> Any:
        """Its ``max_length`` is the number of events that an interest is made of."""

    @property
    def vocabulary(self) -> Vocabulary:
        """Item ids <-> rows of ``item_vectors_VD``."""

    @property
    def item_vectors_VD(self) -> Tensor:
        """float32 [V + 1, D], row 0 = unknown item."""

    @property
    def trained_until_us(self) -> int | None:
        """Microseconds UTC of the newest event the model was trained on; None if the log had no times."""

    @property
    def digest(self) -> str:
        """Hexadecimal sha256 that tells models apart; interests and item vectors of two models don't fit together."""

    def encode(self, histories: Sequences, /, *, wide: bool = False) -> Tensor:
        """float32 [B, K, D], in calls that bound its own memory; an interest that a user lacks is NaN or zero.

        ``wide`` asks for the same bytes for a user in whatever call, as arithmetic in float64 gives them once rounded.
        """


def refuse_future_model(model: FeatureModel, earliest_us: int, allowed: bool) -> None:
    """Raises UsageError if the model was trained on an event at or after ``earliest_us`` and that is not allowed."""
    if allowed:
        return
    until = model.trained_until_us
    if until is None:
        raise UsageError(
            "the model does not tell until when its training events reach, so it may know what came after `at`; "
            "train on a log with times, or pass allow_future_model=True"
        )
    if until >= earliest_us:
        trained, asked = (pd.Timestamp(us, unit="us", tz="UTC").isoformat() for us in (until, earliest_us))
        raise UsageError(
            f"the model was trained on events until {trained}, not before at = {asked}: its features would "
            "know the future. Use a model trained on earlier events, or pass allow_future_model=True"
        )


def encode(model: FeatureModel, history: Sequences, dim: int) -> tuple[Tensor, Tensor]:
    """float32 [R, K, D] and int64 [R], microseconds of the newest event.

    NaN and -1 for a request without an event of a known item, whatever the encoder makes of nothing.
    """
    with torch.no_grad():
        interests_RKD = model.encode(history, wide=True).to("cpu", torch.float32)
    shape = tuple(interests_RKD.shape)
    if len(shape) != 3 or shape != (history.n_users, max(shape[1], 1), dim):
        raise PluginError(f"the model's encode gave shape {shape}, not [{history.n_users}, K, {dim}]")
    known_R = np.diff(np.concatenate([[0], np.cumsum(history.items > 0)])[history.offsets]) > 0
    newest_R = np.full(history.n_users, -1, np.int64)
    newest_R[known_R] = np.asarray(history.timestamps)[history.offsets[1:][known_R] - 1]
    return torch.where(torch.from_numpy(known_R)[:, None, None], interests_RKD, torch.nan), torch.from_numpy(newest_R)
