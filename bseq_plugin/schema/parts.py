"""Base classes of the parts a plugin can add, each with what it takes, gives and raises.

Shape letters: B users, T events of a packed batch, Q states that are asked for, S targets, N
candidates, V catalogue items, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from bseq_plugin.schema.options import PartOptions
from bseq_plugin.schema.packed import PackedEvents

if TYPE_CHECKING:
    from bseq_plugin.schema.ranking import FeatureInputs


class MachineChoices:
    """Options of a part that are left to be found by measuring the machine.

    ``train`` asks once, on rank 0, gives the answer to every rank and writes it into the run, so that all ranks and a
    resumed run calculate alike. In a training loop of another kind ``settle`` is for its owner to call.
    """

    options: Any

    def machine_choices(self, dim: int) -> dict[str, Any]:
        """Those options, for vectors of width ``dim``, with what is best here; none by default."""
        return {}

    def settle(self, choices: Mapping[str, Any]) -> None:
        """Take ``choices`` over into the options."""
        self.options = self.options.model_copy(update=dict(choices))


class SequenceEncoder(nn.Module, MachineChoices, ABC):
    """Events in, one state an event out; a state may depend on its own user's events up to and including its own.

    Subclasses set ``name`` and, if they have settings, an ``Options`` model. All tensors live where the inputs live,
    and every module with parameters of its own has ``reset_parameters`` (it may be created on the meta device).
    """

    name: ClassVar[str]
    Options: ClassVar[type[PartOptions]] = PartOptions
    reads_sessions: ClassVar[bool] = False  # ask for ``PackedEvents.sessions_T``
    predicts_masked: ClassVar[bool] = False  # it has ``masked_states_at``, for ``targets = "masked"``

    def __init__(self, dim: int, max_length: int, dropout: float, options: Any = None) -> None:
        super().__init__()
        self.dim = dim
        self.max_length = max_length
        self.dropout = dropout
        self.options: Any = self.Options() if options is None else options

    @abstractmethod
    def forward(self, events: PackedEvents) -> Tensor:
        """``states_TD`` float, for ``events.x_TD`` [T, D]; T may be 0, histories are at most ``max_length`` long."""

    def states_at(self, events: PackedEvents, rows_Q: Tensor) -> Tensor:
        """``states_QD`` of the packed rows ``rows_Q`` (int64) alone, equal to ``self(events)[rows_Q]``.

        Serving needs one state a user, training some: override it where that saves work.
        """
        states_QD: Tensor = self(events)[rows_Q]
        return states_QD

    def attention(self, events: PackedEvents) -> Tensor | None:
        """``[T]``, what share of each user's newest state comes from each event, summing to 1 a user; for pictures.

        None, the default: the part has no such weights.
        """
        return None

    def masked_states_at(self, events: PackedEvents, rows_Q: Tensor) -> Tensor:
        """``states_QD`` in the places of hidden events, from the user's other events on both sides.

        ``events.x_TD[rows_Q]`` are the hidden events themselves: they must not be read. Asked for in training only.
        """
        raise NotImplementedError(f"encoder {self.name!r} can't predict hidden events: predicts_masked is False")


@dataclass(frozen=True)
class Targets:
    """S targets; a state may have one (next item) or many distinct ones (everything in the days that follow).

    Attributes:
        vectors_SD: float, item vectors.
        ids_S: int64, vocabulary rows.
        state_S: int64, ascending, the state each target belongs to.
        weights_S: float, >= 0.
        places_S: int64, where each target stands among the candidates, for candidates without duplicates whose rows
            ``vectors_SD`` was taken from; else None. A loss may read the targets there and leave ``vectors_SD`` alone.
    """

    vectors_SD: Tensor
    ids_S: Tensor
    state_S: Tensor
    weights_S: Tensor
    places_S: Tensor | None = None


@dataclass(frozen=True)
class Candidates:
    """What a target is told apart from: one candidate set shared by the states of a batch.

    Attributes:
        vectors_ND: float, item vectors.
        ids_N: int64, vocabulary rows (duplicates allowed when sampled).
        log_expected_count_N: float, natural log of how often each candidate is expected in the set, the ``logQ`` of
            sampled softmax; None when they are a whole catalogue: then ``ids_N`` is ascending, without duplicates,
            and holds every target.
    """

    vectors_ND: Tensor
    ids_N: Tensor
    log_expected_count_N: Tensor | None = None


class SequenceLoss(nn.Module, MachineChoices, ABC):
    """Scalar loss of states against their targets and a candidate set. Score = inner product."""

    name: ClassVar[str]
    Options: ClassVar[type[PartOptions]] = PartOptions

    def __init__(self, options: Any = None) -> None:
        super().__init__()
        self.options: Any = self.Options() if options is None else options

    @abstractmethod
    def forward(self, states_QD: Tensor, targets: Targets, candidates: Candidates) -> Tensor:
        """Weighted mean over S targets (``sum(w * loss) / sum(w)``); 0 with a gradient of zeros when S = 0.

        A candidate that is a target of the same state (an accidental hit) must not count as its negative: what a
        state's targets do to each other is for the loss to say, from ``targets`` alone.
        """


@dataclass(frozen=True)
class IndexCapabilities:
    """What a backend can do; what it lacks is done by the retrieval layer."""

    exact: bool
    device: str = "cpu"  # "cpu" or "cuda"
    max_k: int | None = None  # the largest k of one search, None = no limit
    masks: bool = False  # it has ``search_masked``


@dataclass(frozen=True)
class RowMask:
    """Which rows a masked search may return.

    Attributes:
        allowed_V: bool [V], None = all rows.
        denied: int64 ``(queries_P, rows_P)``, pairs that are left out besides, in any order; None = none.
    """

    allowed_V: Tensor | None = None
    denied: tuple[Tensor, Tensor] | None = None


class VectorIndex(ABC):
    """Maximum-inner-product search over row-numbered vectors. Knows no item ids; filters only if it says so.

    ``options`` come from the recipe of ``publish``; vectors and queries are float32 tensors on CPU. ``capabilities``
    of an instance may differ from those of its class where options decide.
    """

    name: ClassVar[str]
    Options: ClassVar[type[PartOptions]] = PartOptions
    capabilities: IndexCapabilities

    @classmethod
    @abstractmethod
    def build(cls, vectors_VD: Tensor, options: Any = None) -> VectorIndex:
        """Index ``vectors_VD`` (finite, V >= 1)."""

    @abstractmethod
    def search(self, queries_BD: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """``(scores_Bk float32, rows_Bk int64)``, best first; 1 <= k <= V. A missing hit has row -1, score -inf.

        Equal scores are in ascending row order where the backend is exact. Raises UsageError for a wrong width,
        k out of range, or NaN in the queries.
        """

    def search_masked(self, queries_BD: Tensor, k: int, mask: RowMask) -> tuple[Tensor, Tensor]:
        """``search`` among the rows that ``mask`` leaves; asked only of a backend with ``capabilities.masks``."""
        raise NotImplementedError(f"index {self.name!r} has no masked search: capabilities.masks is False")

    def efforts(self) -> list[dict[str, Any]]:
        """Options that say how far a search looks, from quick to thorough; none if there is nothing to say."""
        return []

    def with_effort(self, effort: dict[str, Any]) -> VectorIndex:
        """This index, looking as far as one of ``efforts`` says; it may change and return itself."""
        raise NotImplementedError(f"index {self.name!r} has no efforts to choose from")

    @abstractmethod
    def save(self, path: Path) -> None:
        """Write what is needed beside the vectors to one file; a backend that needs nothing writes no file."""

    @classmethod
    @abstractmethod
    def load(cls, path: Path, vectors_VD: Tensor, options: Any = None) -> VectorIndex:
        """The index saved at ``path`` over the same vectors."""


class RankingFeature(ABC):
    """Columns for rows of (user, candidate, at): a scalar, a fixed-length vector, or several named scalars.

    ``options`` come from ``FeatureSpec.options``. ``group`` is what an ablation takes away together.
    """

    name: ClassVar[str]
    description: ClassVar[str]  # definition, one sentence
    unit: ClassVar[str] = ""
    null_rule: ClassVar[str] = ""  # when a value is NaN
    source: ClassVar[str] = ""  # the paper or system it is taken from
    group: ClassVar[str] = "other"
    Options: ClassVar[type[PartOptions]] = PartOptions

    def __init__(self, options: Any = None) -> None:
        self.options: Any = self.Options() if options is None else options

    def columns(self, event_types: tuple[str, ...]) -> tuple[str, ...]:
        """Names of the columns; one: a scalar or a vector, several: as many scalars.

        Args:
            event_types: those of the model's vocabulary, ascending.
        """
        return (self.name,)

    @classmethod
    def summary(cls) -> str:
        """Definition, unit and null rule in one line."""
        unit = f", {cls.unit}" if cls.unit else ""
        return f"{cls.description}{unit}{'; ' if cls.null_rule else ''}{cls.null_rule}"

    @abstractmethod
    def compute(self, inputs: FeatureInputs) -> Tensor:
        """float32 [N] for a scalar, [N, width] for a vector, [N, columns] for several; N candidate rows.

        NaN where undefined.
        """
