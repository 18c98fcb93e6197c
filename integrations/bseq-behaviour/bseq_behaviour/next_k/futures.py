"""What a sequence head reads of users at an instant, and what they did next.

Shape letters: B users, M states in memory, J steps, D width of item vectors.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch

import bseq_plugin as bseq
from bseq_behaviour.contract.heads import DecoderMemory
from bseq_behaviour.propensity.labels import known_users
from bseq_behaviour.propensity.vectors import check_instant

EVENTS_PER_CALL = 1 << 13  # bounds memory


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
def memory_of(model: bseq.InterestModel, histories: bseq.Sequences, n_states: int) -> DecoderMemory:
    """The states of the latest ``n_states`` events of each user, who has one or more, and their interest.

    Raises UsageError for histories without events, and for a model of several interests: a decoder reads one.
    """
    if n_states < 1 or (histories.lengths < 1).any():
        raise bseq.UsageError(f"n_states = {n_states}, and histories without events are given; give 1 or more of each")
    if model.recipe.interests_per_user > 1:
        raise bseq.UsageError(
            f"the model has {model.recipe.interests_per_user} interests a user, a decoder begins with one; train a "
            "model with readout = 'last'"
        )
    histories = histories.latest(model.recipe.encoder.max_length)
    parts = np.array_split(np.arange(histories.n_users), max(1, -(-histories.n_events // EVENTS_PER_CALL)))
    width = min(n_states, int(histories.lengths.max(initial=1)))
    memories = [_memory_of(model, histories.take(users), width) for users in parts]
    return DecoderMemory(*(torch.cat([getattr(one, name.name) for one in memories]) for name in fields(DecoderMemory)))


def _memory_of(model: bseq.InterestModel, histories: bseq.Sequences, width: int) -> DecoderMemory:
    states_TS = bseq.event_states(model.encoder, histories)
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
    model: bseq.InterestModel,
    log: bseq.Sequences,
    at_us: int,
    n_steps: int,
    n_states: int = 50,
    until_us: int | None = None,
    allow_future_model: bool = False,
) -> Futures:
    """Everybody with a past and a future at an instant; the future is the next ``n_steps`` known events before
    ``until_us``.

    Args:
        allow_future_model: take a model too that was trained on what came after.

    Raises UsageError if the model knows what came after, SchemaError if nobody has both.
    """
    check_instant(model, at_us, allow_future_model)
    if n_steps < 1:
        raise bseq.UsageError(f"n_steps = {n_steps}; give 1 or more")
    later = log.between(at_us, until_us).known()
    users = np.intersect1d(known_users(log, at_us), np.flatnonzero(later.lengths))
    if not len(users):
        raise bseq.SchemaError("nobody has events both before and after that instant; choose another")
    ahead = later.take(users)
    place = ahead.offsets[:-1, None] + np.arange(n_steps)
    there = place < ahead.offsets[1:, None]
    place = np.minimum(place, ahead.n_events - 1)
    items = np.where(there, ahead.items[place], 0)
    types = np.zeros_like(items) if ahead.event_types is None else np.where(there, ahead.event_types[place], 0)
    memory = memory_of(model, log.known_at(at_us).take(users), n_states)
    return Futures(users, memory, torch.from_numpy(items), torch.from_numpy(types))
