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
from torch.nn.functional import pad
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from bseq_plugin.data.event_features import EventInputs, event_inputs, session_numbers
from bseq_plugin.data.jagged import check_ids_and_lengths, require_jagged
from bseq_plugin.errors import UsageError
from bseq_plugin.events.sequences import Sequences
from bseq_plugin.recipe.recipe import Recipe
from bseq_plugin.schema.options import names_in

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

    @classmethod
    def of(
        cls, features: KeyedJaggedTensor, *, log_expected_count_N: Tensor | None = None, loss_scale: float = 1.0
    ) -> Batch:
        """Make the batch in which each user's newest state predicts all of the user's targets, each with weight 1.

        Taken out, as nothing predicts them: targets of users without events, and of row 0. The negatives are the values
        of all users together. Not for ``objective.kind = "masked"``, nor with ``objective.popularity_days``.

        Args:
            features: keys ``event``, the recipe's event features, ``target`` and ``negative``.
            log_expected_count_N: see ``Negatives``; None for negatives that are the whole catalogue.

        Raises:
            UsageError: a key is missing, lengths do not sum to the number of values, or the negatives are not what
                ``log_expected_count_N`` says.
        """
        require_jagged(features, "features")
        check_ids_and_lengths(features)
        keys = features.keys()
        for key in (EVENT, TARGET, NEGATIVE):
            if key not in keys:
                raise UsageError(f"a batch needs the key {key!r}; these features have {keys}")
        features = _predictable(features)
        targets_B, ids_S = features[TARGET].lengths().long(), features[TARGET].values().long()
        ids_N = features[NEGATIVE].values().long()
        _check_negatives(ids_N, ids_S, log_expected_count_N)
        rows_Q = features[EVENT].lengths().long().cumsum(0)[targets_B > 0] - 1
        state_S = torch.arange(len(rows_Q), device=rows_Q.device).repeat_interleave(targets_B[targets_B > 0])
        scale = torch.tensor(loss_scale, dtype=torch.float32, device=rows_Q.device)
        ones_S = torch.ones_like(ids_S, dtype=torch.float32)
        return cls(features, rows_Q, state_S, ids_S, ones_S, ids_N, log_expected_count_N, scale)

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
        UsageError: a feature that there is not, or one string for several names.
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


def latest_events(kjt: KeyedJaggedTensor, max_length: int, keys: Sequence[str] | None = None) -> KeyedJaggedTensor:
    """Return only the last ``max_length`` values of every user in ``keys`` (default: all), the others as they are.

    Types and weights stay; if nothing is longer, it is this very object. ``time_gap`` and what counts sessions are
    relative to the first event that is read: make them after the cut. Raises UsageError for an unknown key, for one
    string as ``keys``, and for a length that is no whole number above 0.
    """
    require_jagged(kjt, "kjt")
    known = kjt.keys()
    cut = known if keys is None else names_in(keys, "keys")
    unknown = [key for key in cut if key not in known]
    if unknown or not isinstance(max_length, int | np.integer) or max_length < 1:
        wrong = f"there is no key {unknown[0]!r}" if unknown else f"max_length = {max_length!r}"
        raise UsageError(f"{wrong}; give some of the keys {known}, and a whole number of 1 or more")
    lengths = kjt.lengths().long()
    is_cut = torch.tensor([key in cut for key in known]).repeat_interleave(torch.tensor(kjt.stride_per_key()))
    first = lengths.cumsum(0) - lengths + (lengths - max_length) * is_cut.to(lengths.device)
    return _kept(kjt, torch.arange(len(kjt.values()), device=first.device) >= first.repeat_interleave(lengths))


def _kept(kjt: KeyedJaggedTensor, keep_T: Tensor) -> KeyedJaggedTensor:
    """Return only the values, of all keys, with ``keep_T`` True; this very object if all are."""
    if bool(keep_T.all()):
        return kjt
    weights = kjt.weights_or_none()
    kept = pad(keep_T.cumsum(0), (1, 0))[pad(kjt.lengths().long().cumsum(0), (1, 0))]
    return KeyedJaggedTensor(
        kjt.keys(),
        kjt.values()[keep_T],
        None if weights is None else weights[keep_T],
        kept.diff().to(kjt.lengths().dtype),
        stride_per_key_per_rank=kjt.stride_per_key_per_rank() if kjt.variable_stride_per_key() else None,
        inverse_indices=kjt.inverse_indices_or_none(),
    )


def _predictable(features: KeyedJaggedTensor) -> KeyedJaggedTensor:
    targets, has_events_B = features[TARGET], features[EVENT].lengths() > 0
    keep_S = has_events_B.repeat_interleave(targets.lengths().long()) & (targets.values() > 0)
    start = sum(features.length_per_key()[: features.keys().index(TARGET)])
    after = len(features.values()) - start - len(keep_S)
    return _kept(features, pad(keep_S, (start, after), value=True))


def _check_negatives(ids_N: Tensor, target_ids_S: Tensor, log_expected_count_N: Tensor | None) -> None:
    if log_expected_count_N is not None:
        wrong = (
            "" if log_expected_count_N.shape == ids_N.shape else f"and has shape {tuple(log_expected_count_N.shape)}"
        )
    else:  # losses look a target up there without looking whether it is found
        whole = bool((ids_N.diff() > 0).all() and torch.isin(target_ids_S, ids_N).all())
        wrong = "" if whole else "without it they have to be a whole catalogue: ascending, each once, with every target"
    if wrong:
        raise UsageError(
            f"key {NEGATIVE!r} has {len(ids_N)} values; log_expected_count_N says of each how often it is expected "
            f"there (its log, log(N / n_items) if drawn evenly), {wrong}"
        )


# numpy pads a seed with zeros: without tags, [seed, epoch] and [seed, epoch, 0] would be one stream
ORDER_STREAM, STEP_STREAM = 1, 2

# gives the generator of a step, the same one at every call
RandomNumbers = Callable[[], np.random.Generator]


def step_random(seed: int, epoch: int, step: int) -> RandomNumbers:
    """Return a function that makes the step's generator once: half a batch's time, and most steps draw nothing."""
    return cache(lambda: np.random.default_rng([seed, STEP_STREAM, epoch, step]))
