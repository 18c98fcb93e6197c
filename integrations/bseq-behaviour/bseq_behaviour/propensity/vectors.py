"""Frozen user vectors as of an instant: what every task reads, whatever the task."""

from __future__ import annotations

import pandas as pd
from torch import Tensor

import bseq_plugin as bseq


def check_instant(model: bseq.InterestModel, at_us: int, allow_future_model: bool = False) -> None:
    """Raises UsageError if the model was trained on events at or after ``at_us``: it would know the answers."""
    until_us = model.trained_until_us
    if until_us is not None and until_us >= at_us and not allow_future_model:
        raise bseq.UsageError(
            f"{_shown(at_us)} lies before the end of training ({_shown(until_us)}): the vectors know what came after "
            "it. Choose a later instant, or a model trained before (split = 'time'), or allow_future_model=True"
        )


def check_log(model: bseq.InterestModel, log: bseq.Sequences, at_us: int, allow_future_model: bool = False) -> None:
    """Raises UsageError as ``check_instant``, and SchemaError if the log lacks what the encoder reads."""
    check_instant(model, at_us, allow_future_model)
    model.check_log(log)


def user_vectors(
    model: bseq.InterestModel, log: bseq.Sequences, at_us: int, allow_future_model: bool = False
) -> Tensor:
    """float32 [U, K * D], of each user's events strictly before ``at_us``; the model's zero history without any.

    Args:
        log: in rows of the model's vocabulary.
        allow_future_model: take a model too that was trained on what came after.

    Raises:
        UsageError: the model knows the future.
        SchemaError: the log lacks what the encoder reads.
    """
    check_log(model, log, at_us, allow_future_model)
    return model.encode(log.known_at(at_us)).flatten(1)


def _shown(at_us: int) -> str:
    return f"{pd.Timestamp(at_us, unit='us'):%Y-%m-%dT%H:%M} UTC"
