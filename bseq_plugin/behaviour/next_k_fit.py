"""A ``NextKDecoder`` over a frozen encoder, trained at instants of the past and judged at a later one.

Shape letters: B users, M states in memory, J steps, D width of item vectors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from bseq_plugin.behaviour.labels import known_users
from bseq_plugin.behaviour.next_k import Memory, NextKDecoder, aggregate, beam_search, sample_paths
from bseq_plugin.behaviour.vectors import check_instant
from bseq_plugin.data.sequences import Sequences
from bseq_plugin.errors import SchemaError, UsageError
from bseq_plugin.metrics import ranking_metrics
from bseq_plugin.model.direct import packed_events
from bseq_plugin.model.interest_model import InterestModel


@dataclass(frozen=True)
class Futures:
    """Users with what they did next.

    Attributes:
        users: int64 [B], places in the log.
        items_BJ, types_BJ: int64, 0 where there was no further known event.
    """

    users: np.ndarray
    memory: Memory
    items_BJ: torch.Tensor
    types_BJ: torch.Tensor


@torch.no_grad()
def memory_of(model: InterestModel, histories: Sequences, n_states: int) -> Memory:
    """The states of the latest ``n_states`` events of each user, who has one or more, and the first interest."""
    if n_states < 1 or (histories.lengths < 1).any():
        raise UsageError(f"n_states = {n_states}, and histories without events are given; give 1 or more of each")
    histories = histories.latest(model.recipe.max_length)
    events = packed_events(model.encoder, histories)
    states_TS = model.encoder.sequence_encoder.part(events)
    lengths = np.minimum(histories.lengths, n_states)
    width = int(lengths.max(initial=1))
    places = histories.offsets[1:, None] - lengths[:, None] + np.arange(width)
    padded = torch.from_numpy(np.arange(width) >= lengths[:, None])
    states_BMS = states_TS[torch.from_numpy(np.minimum(places, max(histories.n_events - 1, 0)))]
    return Memory(states_BMS.masked_fill(padded[..., None], 0.0), padded, model.encode(histories)[:, 0])


def futures(
    model: InterestModel, log: Sequences, at_us: int, n_steps: int, n_states: int = 20, until_us: int | None = None
) -> Futures:
    """Everybody with a past and a future at an instant; the future is the next ``n_steps`` known events before
    ``until_us``.

    Raises UsageError if the model knows what came after, SchemaError if nobody has both.
    """
    check_instant(model, at_us)
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
    *,
    epochs: int = 3,
    batch_users: int = 64,
    learning_rate: float = 1e-3,
    dim: int = 64,
    seed: int = 0,
) -> NextKDecoder:
    """Train a decoder by teacher forcing. Raises UsageError for nothing to train on."""
    if not train or epochs < 1:
        raise UsageError(f"{len(train)} instants, epochs = {epochs}; give 1 or more of each")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state_dim, n_types = train[0].memory.states_BMS.shape[2], len(model.vocabulary.event_types)
        decoder = NextKDecoder(state_dim, model.item_vectors_VD, n_types, n_steps, dim)
        optimizer = torch.optim.Adam(decoder.parameters(), lr=learning_rate)
        for _ in range(epochs):
            pieces = [(n, users) for n, one in enumerate(train) for users in _shuffled(len(one.users), batch_users)]
            for choice in torch.randperm(len(pieces)).tolist():
                place, users = pieces[choice]
                one = train[place]
                optimizer.zero_grad()
                loss = decoder.loss(one.memory.take(users), one.items_BJ[users], one.types_BJ[users])
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    return decoder.eval()


def _shuffled(n_users: int, batch_users: int) -> tuple[torch.Tensor, ...]:
    return torch.split(torch.randperm(n_users), batch_users)


@torch.no_grad()
def judge_next_k(
    decoder: NextKDecoder, test: Futures, k: int, n_beams: int = 8, n_samples: int = 16, block: int = 64, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Recall@k and NDCG@k of the next k events, of the one-step model's top k and of both ways to decode; and how often
    the type of a step is right, of the likeliest path.
    """
    generator = torch.Generator().manual_seed(seed)
    tops: dict[str, list[np.ndarray]] = {"one step": [], "beam": [], "samples": []}
    right, n_rows = 0.0, len(decoder.item_vectors_VD)
    for users in torch.split(torch.arange(len(test.users)), block):
        memory = test.memory.take(users)
        scores_BV = memory.interest_BD @ decoder.item_vectors_VD.T
        scores_BV[:, 0] = -torch.inf
        tops["one step"].append(scores_BV.topk(k, dim=1).indices.numpy())
        beam = beam_search(decoder, memory, k, n_beams)
        tops["beam"].append(aggregate(beam, k, n_rows, weighted=True).numpy())
        drawn = sample_paths(decoder, memory, k, n_samples, generator=generator)
        tops["samples"].append(aggregate(drawn, k, n_rows).numpy())
        there = test.items_BJ[users, :k] > 0
        right += float(((beam.types_BRJ[:, 0] == test.types_BJ[users, :k]) & there).sum())
    offsets, items = _targets(test.items_BJ[:, :k].numpy())
    found = {}
    for name, parts in tops.items():
        metrics = ranking_metrics(np.where(np.concatenate(parts) > 0, np.concatenate(parts), -1), offsets, items, [k])
        found[name] = {metric: float(metrics[f"{metric}@{k}"].mean()) for metric in ("recall", "ndcg")}
    types = test.types_BJ[:, :k][test.items_BJ[:, :k] > 0]
    commonest = float((types == types.mode().values).float().mean())
    found["event type"] = {"decoder": right / len(types), "the commonest": commonest}
    return found


def _targets(items_BJ: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(offsets, distinct items ascending) of each user."""
    rows = [np.unique(own[own > 0]) for own in items_BJ]
    return np.concatenate([[0], np.cumsum([len(own) for own in rows])]).astype(np.int64), np.concatenate(rows)
