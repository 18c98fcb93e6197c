"""A sequence head over a frozen encoder, trained at instants of the past."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

import bseq_plugin as bseq
from bseq_behaviour.contract.answers import checked
from bseq_behaviour.contract.choice import HeadChoice, sequence_head
from bseq_behaviour.contract.heads import SequenceHead
from bseq_behaviour.fitting import BestWeights, require_finite
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
    if not train or epochs < 1 or batch_users < 1:
        raise bseq.UsageError(
            f"{len(train)} instants, epochs = {epochs}, batch_users = {batch_users}; give 1 or more of each"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state_dim, n_types = train[0].memory.states_BMS.shape[2], len(model.vocabulary.event_types)
        choice = HeadChoice(head, options or {})
        decoder = sequence_head(choice, state_dim, model.item_vectors_VD, n_types, n_steps)
        optimizer = torch.optim.Adam(decoder.parameters(), lr=learning_rate)
        best = BestWeights(decoder)
        for epoch in range(1, epochs + 1):
            _pass(decoder, optimizer, train, batch_users, epoch)
            if validation is not None:
                best.see(_loss(decoder, validation, batch_users))
    if validation is not None:
        best.restore()
    return decoder.eval()


def _pass(
    decoder: SequenceHead, optimizer: torch.optim.Optimizer, train: list[Futures], batch_users: int, epoch: int
) -> None:
    """Every user of every instant once."""
    decoder.train()
    pieces = [(n, users) for n, one in enumerate(train) for users in _shuffled(len(one.users), batch_users)]
    for choice in torch.randperm(len(pieces)).tolist():
        place, users = pieces[choice]
        optimizer.zero_grad()
        loss = checked(decoder, decoder.loss(*train[place].take(users)), ())
        require_finite(loss.item(), epoch)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


@torch.no_grad()
def _loss(decoder: SequenceHead, validation: Futures, batch_users: int) -> float:
    """Mean over users, a batch at a time."""
    decoder.eval()
    parts = torch.split(torch.arange(len(validation.users)), batch_users)
    return sum(float(decoder.loss(*validation.take(users))) * len(users) for users in parts) / len(validation.users)


def _shuffled(n_users: int, batch_users: int) -> tuple[torch.Tensor, ...]:
    return torch.split(torch.randperm(n_users), batch_users)
