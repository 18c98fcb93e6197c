"""A sequence head over a frozen encoder, trained at instants of the past."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

import bseq_plugin as bseq
from bseq_behaviour.contract.answers import checked
from bseq_behaviour.contract.choice import HeadChoice, sequence_head
from bseq_behaviour.contract.heads import SequenceHead
from bseq_behaviour.fitting import Plan, fit, mean_loss, require_instants, seeded
from bseq_behaviour.next_k.futures import Futures


def fit_next_k(
    model: bseq.InterestModel,
    train: list[Futures],
    n_steps: int,
    validation: Futures | None = None,
    *,
    epochs: int = 3,
    batch_users: int = 64,
    learning_rate: float = 1e-3,
    head: str = "transformer",
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> SequenceHead:
    """Train a decoder by teacher forcing; with ``validation`` the epoch with the least loss there is kept.

    Args:
        head, options: a sequence head and its settings.

    Raises UsageError for nothing to train on, or futures of more than ``n_steps`` steps, UsageError or RecipeError for
    an unknown head or option; PluginError for a head that gives nonsense; BseqError if the loss is no longer finite.
    """
    plan = Plan(epochs, batch_users, seed)
    require_instants(train)
    with seeded(seed):
        state_dim, n_types = train[0].memory.states_BMS.shape[2], len(model.vocabulary.event_types)
        choice = HeadChoice(head, options or {})
        decoder = sequence_head(choice, state_dim, model.item_vectors_VD, n_types, n_steps)

        def loss(instant: int, users: np.ndarray) -> Tensor:
            return checked(decoder, decoder.loss(*train[instant].take(torch.from_numpy(users))), ())

        fit(
            decoder,
            torch.optim.Adam(decoder.parameters(), lr=learning_rate),
            loss,
            [len(one.users) for one in train],
            plan,
            None if validation is None else lambda: _judged(decoder, validation, batch_users),
        )
    return decoder


def _judged(decoder: SequenceHead, validation: Futures, batch_users: int) -> float:
    """Return the mean loss over the users of an instant."""
    return mean_loss(
        lambda users: decoder.loss(*validation.take(torch.from_numpy(users))), len(validation.users), batch_users
    )
