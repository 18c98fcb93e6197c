"""Batches: everything a training step needs, made before ``forward``.

One ``KeyedJaggedTensor`` carries it all, so that TorchRec's pipeline can start every look-up one batch ahead:

    key         timestamp   event       event_type  time_gap    target     negative
    user 0      [t, t, t]   [i, i, i]   [e, e, e]   [g, g, g]   [i, i]     [n, n, ... all N]
    user 1      [t]         [i]         [e]         [g]         [i]        []

``event``, ``target`` and ``negative`` are rows of the item table; what stands between them are event features, see
``event_features``. ``timestamp`` is looked up nowhere, nor is ``session_number``, which is there for encoders that read
sessions; they stand first because a sharded collection then reorders, and so drops, the keys that are not its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from bseq_plugin.data.event_features import EventInputs, event_inputs, session_numbers
from bseq_plugin.events.sequences import Sequences
from bseq_plugin.recipe.recipe import Recipe

TIMESTAMP, SESSION_NUMBER, EVENT, TARGET, NEGATIVE = "timestamp", "session_number", "event", "target", "negative"


@dataclass
class Batch(Pipelineable):  # type: ignore[misc]  # torchrec is not typed
    """B users' histories, Q states that predict, S targets, N negatives.

    Attributes:
        features: the KeyedJaggedTensor above.
        state_rows_Q: int64, the packed event rows whose states predict something.
        target_state_S: int64, ascending, the place in ``state_rows_Q`` of the state that predicts each target.
        target_ids_S: int64, vocabulary rows.
        target_weights_S: float32.
        negative_ids_N: int64, vocabulary rows.
        log_expected_count_N: float32, or None for the whole catalogue; see ``Negatives``.
        loss_scale: float32 scalar, world size x (this rank's share of the target weight in the global batch): the
            mean over ranks of the scaled losses is then the loss of the global batch.
        target_places_S: int64, where each target stands among the negatives, if they are a whole catalogue: the key
            ``target`` of ``features`` is then empty. Else None.
        target_priors_SP, negative_priors_NP: float32, columns put behind the item vectors, or None.
    """

    features: KeyedJaggedTensor
    state_rows_Q: Tensor
    target_state_S: Tensor
    target_ids_S: Tensor
    target_weights_S: Tensor
    negative_ids_N: Tensor
    log_expected_count_N: Tensor | None
    loss_scale: Tensor
    target_places_S: Tensor | None = None
    target_priors_SP: Tensor | None = None
    negative_priors_NP: Tensor | None = None

    @property
    def n_events(self) -> int:
        """The number of events of all histories."""
        features = self.features
        return int(features.length_per_key()[features.keys().index(EVENT)])

    def to(self, device: torch.device, non_blocking: bool = False) -> Batch:
        """Return a copy on ``device``; this very batch if its features are there."""
        if self.features.device() == device:
            return self
        return self._map(lambda value: value.to(device=device, non_blocking=non_blocking))

    def record_stream(self, stream: torch.Stream) -> None:
        """Tell the allocator that ``stream`` uses these tensors."""
        for value in self._values():
            value.record_stream(stream)

    def pin_memory(self) -> Batch:
        """Return a copy in page-locked memory."""
        return self._map(lambda value: value.pin_memory())

    def _values(self) -> list[Any]:
        return [getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None]

    def _map(self, function: Callable[[Any], Any]) -> Batch:
        mapped: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            mapped[f.name] = None if value is None else function(value)
        return replace(self, **mapped)


def history_features(
    sequences: Sequences,
    events: EventInputs | Recipe | Sequence[str],
    extra: dict[str, tuple[np.ndarray, np.ndarray]] | None = None,
) -> KeyedJaggedTensor:
    """Return the KeyedJaggedTensor of histories as they are (cut them with ``latest`` first).

    Args:
        events: the recipe of the encoder, or the names of its event features.
        extra: further keys with (values, lengths per user), put behind the history's.

    Raises:
        ValueError: if the sequences lack what a feature needs.
    """
    columns: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    inputs = event_inputs(events)
    if sequences.timestamps is not None:
        columns[TIMESTAMP] = (sequences.timestamps, sequences.lengths)
    if inputs.sessions:
        columns[SESSION_NUMBER] = (session_numbers(sequences, inputs.session_gap_us), sequences.lengths)
    columns[EVENT] = (sequences.items, sequences.lengths)
    columns.update({name: (rows, sequences.lengths) for name, rows in inputs.rows(sequences).items()})
    columns.update(extra or {})
    return KeyedJaggedTensor(
        keys=list(columns),
        values=torch.from_numpy(np.concatenate([values for values, _ in columns.values()])),
        lengths=torch.from_numpy(np.concatenate([lengths for _, lengths in columns.values()])),
        stride=sequences.n_users,  # also right for a batch of no users
    )


# numpy pads a seed with zeros: without tags, [seed, epoch] and [seed, epoch, 0] would be one stream
ORDER_STREAM, STEP_STREAM = 1, 2

# gives the generator of a step, the same one at every call
RandomNumbers = Callable[[], np.random.Generator]


def step_random(seed: int, epoch: int, step: int) -> RandomNumbers:
    """Return a function that makes the step's generator once: half a batch's time, and most steps draw nothing."""
    return cache(lambda: np.random.default_rng([seed, STEP_STREAM, epoch, step]))
