"""The parts of an encoder that look at data: leaves of the trace that TorchRec's pipeline makes.

Shape letters: B users, T events, Q states, K interests, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchrec import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from bseq_plugin.data.batches import EVENT, SESSION_NUMBER, TIMESTAMP
from bseq_plugin.data.event_features import EventInputs
from bseq_plugin.data.input_keys import InputKeys
from bseq_plugin.errors import PluginError
from bseq_plugin.events.events import EVENT_TYPE
from bseq_plugin.schema.encoders import USER_INTEREST, SequenceEncoder
from bseq_plugin.schema.packed import PackedEvents


class StateReader(nn.Module):
    """The sequence encoder part, asked for some states only; a leaf of the trace."""

    def __init__(self, part: SequenceEncoder) -> None:
        super().__init__()
        self.part = part

    def forward(
        self, events: PackedEvents, rows_Q: Tensor | None = None, every: bool = False, masked: bool = False
    ) -> Tensor:
        """Return ``[Q, D]``, the states of ``rows_Q``, with ``masked`` those in their places; with ``every`` ``[T,
        D]``, all; else ``[B, D]``, each user's newest, zeros for one without events.
        """
        if masked and rows_Q is not None:
            return self._checked(self.part.masked_states_at(events, rows_Q), len(rows_Q), events)
        if every:
            return self._states(events, None)
        if rows_Q is not None:
            return self._states(events, rows_Q)
        active = events.lengths_B > 0
        if events.longest is not None:  # there is an event, or row 0 could not be read for users without
            states_BD = self._states(events, (events.offsets_B1[1:] - 1).clamp_min(0))
            return torch.where(active[:, None], states_BD, 0.0)
        states_BD = events.x_TD.new_zeros(events.n_users, events.x_TD.shape[1])
        if not bool(active.any()):
            return states_BD
        states_BD[active] = self._states(events, events.offsets_B1[1:][active] - 1)
        return states_BD

    def _states(self, events: PackedEvents, rows_Q: Tensor | None) -> Tensor:
        if rows_Q is None:
            return self._checked(self.part(events), events.x_TD.shape[0], events)
        return self._checked(self.part.states_at(events, rows_Q), rows_Q.shape[0], events)

    def _checked(self, states_QD: object, n_rows: int, events: PackedEvents) -> Tensor:
        """Check the states of the part, which may be a plugin's: a wrong width would surface far from here."""
        wanted = (n_rows, events.x_TD.shape[1])
        if not isinstance(states_QD, Tensor) or states_QD.shape != wanted:
            given = tuple(states_QD.shape) if isinstance(states_QD, Tensor) else type(states_QD).__name__
            raise PluginError(
                f"encoder {self.part.name!r} gave states {given}; wanted a float tensor {wanted}: repair the plugin it "
                "comes from"
            )
        return states_QD


class EventEmbedder(nn.Module):
    """Sums the looked-up vectors of an event: its item's and those of its features (see ``data.event_features``)."""

    def __init__(self, inputs: EventInputs, max_length: int, keys: InputKeys) -> None:
        super().__init__()
        self.inputs, self.max_length, self.names = inputs, max_length, keys

    def forward(self, item_TD: Tensor, looked_up: dict[str, JaggedTensor], history: KeyedJaggedTensor) -> PackedEvents:
        """Return the packed events. Raises ValueError if a history is longer than ``max_length``."""
        event = looked_up[self.names[EVENT]]
        x_TD = item_TD
        for name in self.inputs.features:
            x_TD = x_TD + looked_up[self.names[name]].values()
        lengths_B = event.lengths().to(torch.int64)
        if len(lengths_B) and int(lengths_B.max()) > self.max_length:
            raise ValueError(
                f"a history has {int(lengths_B.max())} events, the encoder reads {self.max_length} "
                "(encoder.max_length): cut histories to the latest events first (Sequences.latest)"
            )
        offsets_B1 = torch.nn.functional.pad(lengths_B.cumsum(0), (1, 0))
        times_T, types_T, sessions_T = (self.names.values(history, n) for n in (TIMESTAMP, EVENT_TYPE, SESSION_NUMBER))
        return PackedEvents(x_TD, offsets_B1, times_T, types_T, sessions_T)


class Readout(nn.Module):
    """A module that makes the KeyedTensor; one of its own because the trace can't build it."""

    def __init__(self, dim: int, n_interests: int) -> None:
        super().__init__()
        self.width = n_interests * dim

    def forward(self, interests_ND: Tensor) -> KeyedTensor:
        """Return ``{"user_interest": [B, K * D]}`` of ``[B * K, D]``."""
        values = interests_ND.reshape(-1, self.width)
        return KeyedTensor(keys=[USER_INTEREST], length_per_key=[self.width], values=values)
