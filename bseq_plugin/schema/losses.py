"""The contract of losses: states against their targets and negatives.

Shape letters: Q states, S targets, N negatives, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from bseq_plugin.schema.part import MachineChoices, OptionsT_co


@dataclass(frozen=True)
class Targets:
    """The S targets of a batch; a state may have one (next item) or many distinct ones (everything in the days that
    follow).

    Attributes:
        vectors_SD: float, item vectors.
        ids_S: int64, vocabulary rows.
        state_S: int64, ascending, the state each target belongs to.
        weights_S: float, >= 0.
        places_S: int64, where each target stands among the negatives, for negatives without duplicates whose rows
            ``vectors_SD`` was taken from; else None. A loss may read the targets there and leave ``vectors_SD`` alone.
    """

    vectors_SD: Tensor
    ids_S: Tensor
    state_S: Tensor
    weights_S: Tensor
    places_S: Tensor | None = None


@dataclass(frozen=True)
class Negatives:
    """What targets are told apart from: one set that the states of a batch share, with their targets among it or not.

    Attributes:
        vectors_ND: float, item vectors.
        ids_N: int64, vocabulary rows (duplicates allowed when sampled).
        log_expected_count_N: float, natural log of how often each negative is expected in the set, the ``logQ`` of
            sampled softmax; None when they are a whole catalogue: then ``ids_N`` is ascending, without duplicates,
            and holds every target.
    """

    vectors_ND: Tensor
    ids_N: Tensor
    log_expected_count_N: Tensor | None = None


class SequenceLoss(nn.Module, MachineChoices[OptionsT_co], ABC):
    """The base of losses: a scalar of states against their targets and negatives. Score = inner product."""

    def __init__(self, options: OptionsT_co | None = None) -> None:
        super().__init__()
        self.options = self.checked_options(options)

    @abstractmethod
    def forward(self, states_QD: Tensor, targets: Targets, negatives: Negatives) -> Tensor:
        """Return the weighted mean over S targets (``sum(w * loss) / sum(w)``); 0 with a gradient of zeros when S = 0.

        An item of ``negatives`` that is a target of the same state (an accidental hit) must not count as its negative:
        what a state's targets do to each other is for the loss to say, from ``targets`` alone.
        """
