"""The contract of sequence encoders.

Shape letters: T events of a packed batch, Q states that are asked for, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from bseq_plugin.schema.packed import PackedEvents
from bseq_plugin.schema.part import MachineChoices, OptionsT_co, Part

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from torchrec import KeyedJaggedTensor, KeyedTensor


class SequenceEncoder(nn.Module, MachineChoices[OptionsT_co], ABC):
    """The base of encoders: events in, one state an event out. A state depends on its own user's events up to and
    including its own.

    Subclasses set ``name``; one with settings names their class as the type argument. All tensors live where the inputs
    live, and every module with parameters of its own has ``reset_parameters`` (it may be created on the meta device).
    """

    reads_sessions: ClassVar[bool] = False  # ask for ``PackedEvents.sessions_T``
    predicts_masked: ClassVar[bool] = False  # it has ``masked_states_at``, for the objective "masked"
    reads_dropout: bool = True  # False: a recipe that sets encoder.dropout is refused, for it would mean nothing

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


USER_INTEREST = "user_interest"  # the one key of what comes out


class HistoryEncoder(nn.Module):
    """A module from histories to interests. It owns its embedding tables, which may be on the meta device, to be
    sharded.
    """

    @property
    def width(self) -> int:
        """The width I: the number of interests of a user times the width of one."""
        raise NotImplementedError

    def forward(self, history: KeyedJaggedTensor) -> KeyedTensor:
        """Return ``{"user_interest": [B, I]}``, float32. It is a straight line, so that TorchRec's pipeline can trace
        it.
        """
        raise NotImplementedError


class ItemEncoder(Part[OptionsT_co], ABC):
    """The base of item encoders: text, categories, numbers or pictures of an item as a vector, whatever anybody did
    with it.

    So an item that nobody has touched yet has one. A vector depends on its own row of the items table alone, on the
    options and on the weights: that is what allows caching, and items that come after training.
    """

    description: ClassVar[str]  # one sentence

    def __init__(self, options: OptionsT_co | None = None) -> None:
        self.options: OptionsT_co = self.checked_options(options)

    @property
    @abstractmethod
    def width(self) -> int:
        """The width E of the vectors."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """A sha256 of name, options and weights: the same for two encoders exactly if they give the same vectors."""

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """The columns of the items table that are read, beside ``item_id``."""

    @abstractmethod
    def encode(self, items: pd.DataFrame, progress: bool = False) -> np.ndarray:
        """Return float32 [N, E], finite, for the rows of ``items``; zeros for an item of which nothing is known.

        ``items`` has ``item_id`` and ``columns``; a value may be missing. ``progress``: show a bar on stderr.
        """
