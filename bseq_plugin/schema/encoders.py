"""The contract of sequence encoders.

Shape letters: T events of a packed batch, Q states that are asked for, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from bseq_plugin.schema.packed import PackedEvents
from bseq_plugin.schema.part import MachineChoices, OptionsT_co


class SequenceEncoder(nn.Module, MachineChoices[OptionsT_co], ABC):
    """The base of encoders: events in, one state an event out. A state depends on its own user's events up to and
    including its own.

    Subclasses set ``name``; one with settings names their class as the type argument. All tensors live where the inputs
    live, and every module with parameters of its own has ``reset_parameters`` (it may be created on the meta device).
    """

    reads_sessions: ClassVar[bool] = False  # ask for ``PackedEvents.sessions_T``
    predicts_masked: ClassVar[bool] = False  # it has ``masked_states_at``, for the objective "masked"

    def __init__(self, dim: int, max_length: int, dropout: float, options: OptionsT_co | None = None) -> None:
        super().__init__()
        self.dim = dim
        self.max_length = max_length
        self.dropout = dropout
        self.options = self.checked_options(options)

    @abstractmethod
    def forward(self, events: PackedEvents) -> Tensor:
        """Return ``states_TD`` float, for ``events.x_TD`` [T, D]; T may be 0, histories have at most ``max_length``
        events.
        """

    def states_at(self, events: PackedEvents, rows_Q: Tensor) -> Tensor:
        """Return ``states_QD`` of the packed rows ``rows_Q`` (int64) alone, equal to ``self(events)[rows_Q]``.

        Serving needs one state a user, training some: override it where that saves work.
        """
        states_QD: Tensor = self(events)[rows_Q]
        return states_QD

    def attention(self, events: PackedEvents) -> Tensor | None:
        """Return ``[T]``, the share of each user's newest state that comes from each event, summing to 1 a user; for
        pictures.

        None, the default: the part has no such weights.
        """
        return None

    def masked_states_at(self, events: PackedEvents, rows_Q: Tensor) -> Tensor:
        """Return ``states_QD`` in the places of hidden events, from the user's other events on both sides.

        ``events.x_TD[rows_Q]`` are the hidden events themselves: they must not be read. Asked for in training only.
        """
        raise NotImplementedError(f"encoder {self.name!r} can't predict hidden events: predicts_masked is False")
