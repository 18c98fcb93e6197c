"""Why a user is offered an item: which events of the history pulled it up or pushed it down.

Shape letters: L events of the history, K interests, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

import bseq_plugin as bseq
from bseq_behaviour.columns import ITEM, TIME

HISTORIES_PER_CALL = 256


@dataclass(frozen=True)
class Explanation:
    """What a score is made of.

    Attributes:
        score: of the candidate, the best over the interests.
        baseline: its score for a history without events.
        events: oldest first: item_id, timestamp (if there are times), ``effect``, the score minus the score without
            that event, and ``attention`` if the encoder has it (``SequenceEncoder.attention``). Effects do not add up
            to score - baseline: events stand in for each other.
    """

    candidate: object
    score: float
    baseline: float
    events: pd.DataFrame


def explain(model: bseq.InterestModel, history: bseq.Sequences, candidate: object) -> Explanation:
    """Occlusion (Zeiler and Fergus, ECCV 2014) of each event that the encoder reads, one at a time.

    Args:
        history: of one user, in rows of the model's vocabulary.
        candidate: an item id.

    Raises:
        UsageError: not one history, one without events, or an unknown candidate.
    """
    if history.n_users != 1:
        raise bseq.UsageError(f"an explanation is of one user; these are {history.n_users}")
    history = history.latest(model.recipe.encoder.max_length)
    if history.n_events == 0:
        raise bseq.UsageError("the history has no event to explain the candidate by")
    [row] = model.vocabulary.item_rows(np.asarray([candidate])).tolist()
    if row == 0:
        raise bseq.UsageError(f"candidate {candidate!r} is not in the catalogue")
    vector_D = model.item_vectors_VD[row]
    whole = float(_scores(model.encode(history, wide=True), vector_D)[0])
    nothing = history.slices(np.zeros(1, np.int64), np.zeros(1, np.int64), np.zeros(1, np.int64))
    without_L = np.concatenate(
        [
            _scores(model.encode(_each_without(history, start), wide=True), vector_D)
            for start in range(0, history.n_events, HISTORIES_PER_CALL)
        ]
    )
    ids = np.concatenate([[None], model.vocabulary.item_ids])  # None: an item that the catalogue does not have
    table = pd.DataFrame({ITEM: ids[history.items]})
    if history.timestamps is not None:
        table[TIME] = pd.to_datetime(history.timestamps, unit="us", utc=True)
    baseline = float(_scores(model.encode(nothing, wide=True), vector_D)[0])
    table["effect"] = whole - without_L
    attention_L = _attention(model, history)
    if attention_L is not None:
        table["attention"] = attention_L
    return Explanation(candidate, whole, baseline, table)


def _attention(model: bseq.InterestModel, history: bseq.Sequences) -> np.ndarray | None:
    with torch.no_grad():
        weights_L = bseq.event_attention(model.encoder, history)
    return None if weights_L is None else weights_L.numpy()


def best_new_item(model: bseq.InterestModel, history: bseq.Sequences) -> object:
    """The id of the item with the highest score of those that one user has not had. Raises UsageError without any."""
    if history.n_users != 1 or history.n_events == 0:
        raise bseq.UsageError("the history has no event to explain a candidate by")
    with torch.no_grad():
        scores_V = (model.encode(history)[0] @ model.item_vectors_VD[1:].T).amax(0).numpy()
    scores_V[history.items[history.items > 0] - 1] = -np.inf
    if not np.isfinite(scores_V).any():
        raise bseq.UsageError("the user has had every item of the catalogue; name one")
    [best] = model.vocabulary.item_ids[int(scores_V.argmax()) :][:1].tolist()
    return best


def _scores(interests_BKD: Tensor, vector_D: Tensor) -> np.ndarray:
    """float64 [B], the best inner product over the interests."""
    with torch.no_grad():
        scores: np.ndarray = (interests_BKD.double() @ vector_D.double()).amax(1).numpy()
    return scores


def _each_without(history: bseq.Sequences, start: int) -> bseq.Sequences:
    """Up to ``HISTORIES_PER_CALL`` copies, copy i without event start + i."""
    n_events = history.n_events
    left_out = np.arange(start, min(start + HISTORIES_PER_CALL, n_events))
    rows = np.tile(np.arange(n_events), (len(left_out), 1))
    rows = rows[rows != left_out[:, None]]
    copies = history.take(np.zeros(len(left_out), np.int64)).rows(rows)
    offsets = np.arange(len(left_out) + 1, dtype=np.int64) * (n_events - 1)
    return replace(copies, user_ids=np.repeat(history.user_ids, len(left_out)), offsets=offsets)
