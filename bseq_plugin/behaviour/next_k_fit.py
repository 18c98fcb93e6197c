"""A sequence head over a frozen encoder, trained at instants of the past.

Shape letters: B users, M states in memory, J steps, D width of item vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from bseq_plugin.behaviour.best import BestWeights, require_finite
from bseq_plugin.behaviour.heads import HeadChoice, sequence_head
from bseq_plugin.behaviour.labels import known_users
from bseq_plugin.behaviour.vectors import check_instant
from bseq_plugin.data.sequences import Sequences
from bseq_plugin.errors import SchemaError, UsageError
from bseq_plugin.model.direct import packed_events
from bseq_plugin.model.interest_model import EVENTS_PER_CALL, InterestModel
from bseq_plugin.schema.answers import checked
from bseq_plugin.schema.heads import DecoderMemory, SequenceHead


@dataclass(frozen=True)
class Futures:
    """Users with what they did next.

    Attributes:
        users: int64 [B], places in the log.
        items_BJ, types_BJ: int64, 0 where there was no further known event.
    """

    users: np.ndarray
    memory: DecoderMemory
    items_BJ: torch.Tensor
    types_BJ: torch.Tensor

    def take(self, users: torch.Tensor) -> tuple[DecoderMemory, torch.Tensor, torch.Tensor]:
        """What a decoder reads of some of them."""
        return self.memory.take(users), self.items_BJ[users], self.types_BJ[users]

    @property
    def usual_B(self) -> torch.Tensor:
        """int64 [B], the commonest type among the events in memory, the smallest of equals."""
        types_BM = self.memory.types_BM.masked_fill(self.memory.padded_BM, -1)
        counts = torch.stack([(types_BM == kind).sum(1) for kind in range(int(types_BM.max()) + 1)], dim=1)
        return counts.argmax(1)


@torch.no_grad()
def memory_of(model: InterestModel, histories: Sequences, n_states: int) -> DecoderMemory:
    """The states of the latest ``n_states`` events of each user, who has one or more, and their interest.

    Raises UsageError for histories without events, and for a model of several interests: a decoder reads one.
    """
    if n_states < 1 or (histories.lengths < 1).any():
        raise UsageError(f"n_states = {n_states}, and histories without events are given; give 1 or more of each")
    if model.recipe.interests_per_user > 1:
        raise UsageError(
            f"the model has {model.recipe.interests_per_user} interests a user, a decoder begins with one; train a "
            "model with readout = 'last'"
        )
    histories = histories.latest(model.recipe.max_length)
    parts = np.array_split(np.arange(histories.n_users), max(1, -(-histories.n_events // EVENTS_PER_CALL)))
    width = min(n_states, int(histories.lengths.max(initial=1)))
    found = [_memory_of(model, histories.take(users), width) for users in parts]
    return DecoderMemory(*(torch.cat([getattr(one, name.name) for one in found]) for name in fields(DecoderMemory)))


def _memory_of(model: InterestModel, histories: Sequences, width: int) -> DecoderMemory:
    states_TS = model.encoder.sequence_encoder.part(packed_events(model.encoder, histories))
    lengths = np.minimum(histories.lengths, width)
    places = np.minimum(
        histories.offsets[1:, None] - lengths[:, None] + np.arange(width), max(histories.n_events - 1, 0)
    )
    padded = torch.from_numpy(np.arange(width) >= lengths[:, None])
    items = torch.from_numpy(histories.items[places])
    types = torch.zeros_like(items)
    if histories.event_types is not None:
        types = torch.from_numpy(histories.event_types[places].astype(np.int64))
    states_BMS = states_TS[torch.from_numpy(places)].masked_fill(padded[..., None], 0.0)
    return DecoderMemory(states_BMS, items, types, padded, model.encode(histories)[:, 0])


def futures(
    model: InterestModel, log: Sequences, at_us: int, n_steps: int, n_states: int = 50, until_us: int | None = None
) -> Futures:
    """Everybody with a past and a future at an instant; the future is the next ``n_steps`` known events before
    ``until_us``.

    Raises UsageError if the model knows what came after, SchemaError if nobody has both.
    """
    check_instant(model, at_us)
    if n_steps < 1:
        raise UsageError(f"n_steps = {n_steps}; give 1 or more")
    later = log.between(at_us, until_us).known()
    users = np.intersect1d(known_users(log, at_us), np.flatnonzero(later.lengths))
    if not len(users):
        raise SchemaError("nobody has events both before and after that instant; choose another")
    ahead = later.take(users)
    place = ahead.offsets[:-1, None] + np.arange(n_steps)
    there = place < ahead.offsets[1:, None]
    place = np.minimum(place, ahead.n_events - 1)
    items = np.where(there, ahead.items[place], 0)
    types = np.zeros_like(items) if ahead.event_types is None else np.where(there, ahead.event_types[place], 0)
    memory = memory_of(model, log.between(None, at_us).take(users), n_states)
    return Futures(users, memory, torch.from_numpy(items), torch.from_numpy(types))


def fit_next_k(
    model: InterestModel,
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
        raise UsageError(
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
