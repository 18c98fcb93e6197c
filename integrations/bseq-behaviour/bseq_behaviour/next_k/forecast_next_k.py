"""The next k events of everybody from an instant on: a decoder learned from the instants before, judged on the latest.

Shape letters: B users, K events.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

import bseq_plugin as bseq
from bseq_behaviour.columns import DAY_US, EVENT_TYPE, ITEM, USER
from bseq_behaviour.contract.heads import SequenceHead
from bseq_behaviour.fitting import parts
from bseq_behaviour.next_k.fit_next_k import fit_next_k
from bseq_behaviour.next_k.futures import futures, memory_of
from bseq_behaviour.next_k.judge_next_k import judge_next_k
from bseq_behaviour.next_k.paths import beam_search, expected_items, sample_paths
from bseq_behaviour.propensity.instants import Instants, log_until, past_instants
from bseq_behaviour.propensity.labels import known_users

TRAIN_INSTANTS = 8
N_STATES, N_BEAMS, N_SAMPLES = 50, 8, 16
USERS_PER_CALL = 64


@dataclass(frozen=True)
class NextEvents:
    """What a decoder says of everybody with an event before an instant.

    Attributes:
        items: user_id, at, rank, item_id, ``expected``: how often the item is to be expected among the next k events.
        sequences: user_id, at, step, item_id, event_type (if the log has types), ``log_chance`` of all the items: the
            likeliest sequence that a beam search finds.
        quality: columns ranker, recall, ndcg: on the latest instant whose answers are known; see ``judge_next_k``.
        decoder: it has learned from earlier instants.
    """

    items: pd.DataFrame
    sequences: pd.DataFrame
    quality: pd.DataFrame
    decoder: SequenceHead
    instants: Instants


def forecast_next_k(
    model: bseq.InterestModel,
    log: bseq.Sequences,
    k: int,
    at_us: int | None = None,
    *,
    days: float = 28.0,
    head: str = "transformer",
    options: Mapping[str, Any] | None = None,
    epochs: int = 4,
    allow_future_model: bool = False,
    seed: int = 0,
) -> NextEvents:
    """Train a decoder at up to ``TRAIN_INSTANTS`` instants, stop and judge it on the latest with known answers, and ask
    it about ``at_us``.

    Args:
        at_us: nothing from here on is known; default: the end of the log.
        days: the next events are those of so many days, so that no training instant reaches the one of judgement.
        head, options, epochs: see ``fit_next_k``.
        allow_future_model: also instants before the end of the model's training.

    Raises as ``past_instants``, ``log_until``, ``futures`` and ``fit_next_k``.
    """
    if not 1 <= k <= model.vocabulary.n_items or not days > 0:
        raise bseq.UsageError(
            f"k = {k}, days = {days}; give a k between 1 and the {model.vocabulary.n_items} items there are, and days "
            "above 0"
        )
    log, now_us = log_until(log, at_us)
    window_us = round(days * DAY_US)
    instants = past_instants(model, log, window_us, now_us, allow_future_model).latest(TRAIN_INSTANTS)
    *train, held = (
        futures(model, log, us, k, N_STATES, us + window_us, allow_future_model)
        for us in (*instants.train_us, instants.validation_us)
    )
    decoder = fit_next_k(model, train, k, held, head=head, options=options, epochs=epochs, seed=seed)
    judged = judge_next_k(decoder, held, k, N_BEAMS, N_SAMPLES, seed=seed)
    judged.pop("event type")
    rows = [(name, metrics["recall"].mean(), metrics["ndcg"].mean()) for name, metrics in judged.items()]
    items, sequences = _decoded(decoder, model, log.known_at(now_us), now_us, k, seed)
    return NextEvents(items, sequences, pd.DataFrame(rows, columns=["ranker", "recall", "ndcg"]), decoder, instants)


def _decoded(
    decoder: SequenceHead, model: bseq.InterestModel, log: bseq.Sequences, now_us: int, k: int, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(items, sequences) of ``NextEvents``."""
    generator = torch.Generator().manual_seed(seed)
    items, sequences = [], []
    for users in parts(known_users(log, now_us), USERS_PER_CALL):
        memory = memory_of(model, log.take(users), N_STATES)
        expected_BV = expected_items(sample_paths(decoder, memory, k, N_SAMPLES, generator=generator))
        drawn = expected_BV[:, 1:].topk(k, dim=1)  # without the unknown item
        beams = beam_search(decoder, memory, k, N_BEAMS)
        known = _table(log.user_ids[users], now_us, k, "rank")
        items.append(known.assign(item=1 + drawn.indices.ravel().numpy(), expected=drawn.values.ravel().numpy()))
        steps = _table(log.user_ids[users], now_us, k, "step").assign(item=beams.items_BRJ[:, 0].ravel().numpy())
        steps["type"] = beams.types_BRJ[:, 0].ravel().numpy()
        sequences.append(steps.assign(log_chance=beams.log_chance_BR[:, 0].repeat_interleave(k).numpy()))
    return _named(pd.concat(items, ignore_index=True), model), _named(pd.concat(sequences, ignore_index=True), model)


def _table(user_ids: np.ndarray, now_us: int, k: int, place: str) -> pd.DataFrame:
    """k rows a user."""
    at = pd.Timestamp(now_us, unit="us", tz="UTC")
    return pd.DataFrame({USER: np.repeat(user_ids, k), "at": at, place: np.tile(np.arange(1, k + 1), len(user_ids))})


def _named(table: pd.DataFrame, model: bseq.InterestModel) -> pd.DataFrame:
    """Rows of the vocabulary become ids; types of a log without types are left out."""
    vocabulary = model.vocabulary
    table.insert(3, ITEM, vocabulary.item_ids[table.pop("item").to_numpy() - 1])
    if "type" in table:
        rows = table.pop("type").to_numpy()
        if vocabulary.event_types:
            table.insert(4, EVENT_TYPE, np.array([None, *vocabulary.event_types], object)[rows])
    return table
