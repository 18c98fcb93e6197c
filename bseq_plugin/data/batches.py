"""Batches: everything a training step needs, made before ``forward``.

One ``KeyedJaggedTensor`` carries it all, so that TorchRec's pipeline can start every look-up one batch ahead:

    key         timestamp   event       event_type  time_gap    target     negative
    user 0      [t, t, t]   [i, i, i]   [e, e, e]   [g, g, g]   [i, i]     [n, n, ... all N]
    user 1      [t]         [i]         [e]         [g]         [i]        []

``event``, ``target`` and ``negative`` are rows of the item table. ``timestamp`` is looked up nowhere; it stands first
because a sharded collection then reorders, and so drops, the keys that are not its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from bseq_plugin.data.events import MICROSECONDS
from bseq_plugin.data.sequences import Sequences

TIMESTAMP, EVENT, EVENT_TYPE, TIME_GAP, TARGET, NEGATIVE = (
    "timestamp", "event", "event_type", "time_gap", "target", "negative",
)  # fmt: skip
N_TIME_GAPS = 32  # buckets of log2 seconds; the last one begins at 2^30 s, 34 years


@dataclass
class Batch(Pipelineable):  # type: ignore[misc]  # torchrec is not typed
    """B users' histories, Q states that predict, S targets, N candidates.

    Attributes:
        features: the KeyedJaggedTensor above.
        state_rows_Q: int64, the packed event rows whose states predict something.
        target_state_S: int64, ascending, the place in ``state_rows_Q`` of the state that predicts each target.
        target_ids_S: int64, vocabulary rows.
        target_weights_S: float32.
        candidate_ids_N: int64, vocabulary rows.
        log_expected_count_N: float32, or None for the whole catalogue; see ``Candidates``.
        loss_scale: float32 scalar, world size x (this rank's share of the target weight in the global batch): the
            mean over ranks of the scaled losses is then the loss of the global batch.
        target_places_S: int64, where each target stands among the candidates, if they are a whole catalogue: the key
            ``target`` of ``features`` is then empty. Else None.
        target_priors_SP, candidate_priors_NP: float32, columns put behind the item vectors, or None.
    """

    features: KeyedJaggedTensor
    state_rows_Q: Tensor
    target_state_S: Tensor
    target_ids_S: Tensor
    target_weights_S: Tensor
    candidate_ids_N: Tensor
    log_expected_count_N: Tensor | None
    loss_scale: Tensor
    target_places_S: Tensor | None = None
    target_priors_SP: Tensor | None = None
    candidate_priors_NP: Tensor | None = None

    def to(self, device: torch.device, non_blocking: bool = False) -> Batch:
        """A copy on ``device``."""
        return self._map(lambda value: value.to(device=device, non_blocking=non_blocking))

    def record_stream(self, stream: Any) -> None:
        """Tell the allocator that ``stream`` uses these tensors."""
        for value in self._values():
            value.record_stream(stream)

    def pin_memory(self) -> Batch:
        """A copy in page-locked memory."""
        return self._map(lambda value: value.pin_memory())

    def _values(self) -> list[Any]:
        return [getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None]

    def _map(self, function: Any) -> Batch:
        mapped: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            mapped[f.name] = None if value is None else function(value)
        return replace(self, **mapped)


def history_features(
    sequences: Sequences, event_features: Sequence[str], extra: dict[str, tuple[np.ndarray, np.ndarray]] | None = None
) -> KeyedJaggedTensor:
    """The KeyedJaggedTensor of histories as they are (cut them with ``latest`` first).

    Args:
        event_features: which of "event_type" and "time_gap" to include.
        extra: further keys with (values, lengths per user), put behind the history's.

    Raises:
        ValueError: if the sequences lack what a feature needs.
    """
    columns: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    if sequences.timestamps is not None:
        columns[TIMESTAMP] = (sequences.timestamps, sequences.lengths)
    columns[EVENT] = (sequences.items, sequences.lengths)
    if EVENT_TYPE in event_features:
        if sequences.event_types is None:
            raise ValueError("the model reads event types, but these histories have none")
        columns[EVENT_TYPE] = (sequences.event_types, sequences.lengths)
    if TIME_GAP in event_features:
        columns[TIME_GAP] = (time_gap_buckets(sequences), sequences.lengths)
    columns.update(extra or {})
    return KeyedJaggedTensor(
        keys=list(columns),
        values=torch.from_numpy(np.concatenate([values for values, _ in columns.values()])),
        lengths=torch.from_numpy(np.concatenate([lengths for _, lengths in columns.values()])),
        stride=sequences.n_users,  # also right for a batch of no users
    )


def time_gap_buckets(sequences: Sequences) -> np.ndarray:
    """int64 [T]: 0 for a user's first event, else 1 + floor(log2(1 + seconds since the event before))."""
    if sequences.timestamps is None:
        raise ValueError("the model reads time gaps, but these histories have no times")
    gaps = np.diff(sequences.timestamps, prepend=0) // MICROSECONDS["s"]
    first = sequences.offsets[:-1][sequences.lengths > 0]
    gaps[first] = 0
    buckets = 1 + np.log2(1.0 + np.maximum(gaps, 0)).astype(np.int64)
    buckets[first] = 0
    bounded: np.ndarray = np.minimum(buckets, N_TIME_GAPS - 1)
    return bounded
