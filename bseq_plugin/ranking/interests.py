"""Interests that were computed before and are looked up as of an instant.

Shape letters: M rows of the table, R requests, K interests, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch
from torch import Tensor

from bseq_plugin.errors import PluginError, SchemaError, UsageError
from bseq_plugin.events.events import DAY_US, USER
from bseq_plugin.events.sequences import Sequences
from bseq_plugin.events.vocabulary import Vocabulary
from bseq_plugin.schema.grid import first_at_or_after


@dataclass(frozen=True)
class StoredInterests:
    """Interests of users at instants, as a batch job leaves them.

    Attributes:
        user_ids: int64 or str objects [M].
        watermark_M: int64, microseconds (UTC) of the newest event that each row knows.
        vectors_MKD: float32, NaN for an interest that a user lacks.
        digest: of the model they come from (``InterestModel.digest``).
    """

    user_ids: np.ndarray
    watermark_M: np.ndarray
    vectors_MKD: Tensor
    digest: str

    def __post_init__(self) -> None:
        n_rows = len(self.user_ids)
        if len(self.watermark_M) != n_rows or self.vectors_MKD.ndim != 3 or len(self.vectors_MKD) != n_rows:
            raise SchemaError(
                f"stored interests: {n_rows} users, {len(self.watermark_M)} times and vectors "
                f"{tuple(self.vectors_MKD.shape)}; give one time and one [K, D] each"
            )
        bad_M = torch.isinf(self.vectors_MKD).flatten(1).any(1)
        if bad_M.any():
            [user] = np.asarray(self.user_ids)[int(bad_M.nonzero()[0]) : int(bad_M.nonzero()[0]) + 1].tolist()
            raise SchemaError(f"stored interests: the vector of user {user!r} is infinite; publish them again")

    @classmethod
    def load(cls, path: str | Path, digest: str) -> StoredInterests:
        """Read ``interests.parquet`` of a store version: user_id, event_timestamp, interest_idx, vector."""
        table = pq.read_table(path)
        users = table[USER].to_pandas().to_numpy()
        times = table["event_timestamp"].combine_chunks().cast("timestamp[us, tz=UTC]").cast("int64")
        watermark = times.fill_null(-1).to_numpy()
        index = table["interest_idx"].to_numpy()
        vectors = np.stack(table["vector"].to_numpy()).astype(np.float32)
        user_places, names = pd.factorize(users, sort=True)
        vectors_MKD = np.full((len(names), int(index.max(initial=0)) + 1, vectors.shape[1]), np.nan, np.float32)
        vectors_MKD[user_places, index] = vectors
        watermark_M = np.full(len(names), -1, np.int64)
        watermark_M[user_places] = watermark
        return cls(names, watermark_M, torch.from_numpy(vectors_MKD), digest)

    def check(self, digest: str) -> None:
        """Raises UsageError if these are not interests of the model with ``digest``: the vectors would not fit."""
        if digest != self.digest:
            raise UsageError(
                f"the interests come from model {self.digest[:12]}, the item vectors from model {digest[:12]}: "
                "a cosine between them means nothing. Compute the interests again with this model"
            )

    def as_of(self, user_ids: np.ndarray, at_R: np.ndarray, ttl_days: float | None) -> tuple[Tensor, Tensor]:
        """(float32 [R, K, D], int64 [R] watermarks): of each user the newest row that knows only events before ``at``.

        NaN and -1 where there is none, or where it is older than ``ttl_days``.
        """
        user_M, users = pd.factorize(pd.Series(self.user_ids), sort=True)
        order_M = np.lexsort((self.watermark_M, user_M))
        times_M = self.watermark_M[order_M]
        place_R = users.get_indexer(pd.Index(user_ids))
        starts_U = np.searchsorted(user_M[order_M], np.arange(len(users) + 1))
        starts_R, stops_R = starts_U[place_R], starts_U[place_R + 1]
        starts_R, stops_R = np.where(place_R >= 0, starts_R, 0), np.where(place_R >= 0, stops_R, 0)
        found_R = first_at_or_after(times_M, starts_R, stops_R, at_R) - 1
        there_R = found_R >= starts_R
        newest_R = np.where(there_R, times_M[np.maximum(found_R, 0)] if len(times_M) else -1, -1)
        if ttl_days is not None:
            there_R &= at_R - newest_R <= ttl_days * DAY_US
        there_R &= newest_R >= 0
        rows_R = order_M[np.maximum(found_R, 0)] if len(order_M) else np.zeros(len(at_R), np.int64)
        vectors_RKD = torch.full((len(at_R), *self.vectors_MKD.shape[1:]), torch.nan)
        there = torch.from_numpy(there_R)
        vectors_RKD[there] = self.vectors_MKD[torch.from_numpy(rows_R)[there]]
        return vectors_RKD, torch.from_numpy(np.where(there_R, newest_R, -1))


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
