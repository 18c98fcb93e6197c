"""The contract of candidate sources, which find candidates beside interest search.

Shape letters: B users, T events, K interests, D width, V catalogue items, N candidates, Q queries, m neighbours.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from bseq_plugin.schema.part import OptionsT_co, Part

if TYPE_CHECKING:
    from bseq_plugin.events.sequences import Sequences


@dataclass(frozen=True)
class SourceInputs:
    """The inputs that a source may read to find candidates.

    Attributes:
        histories: of B users, known items only, oldest event first, in rows of the vocabulary.
        interests_BKD: float32, as the model scores with them.
        item_vectors_VD: float32 [V + 1, D]; row 0 is no item.
        search: ``(queries_QD, m) -> (scores_Qm, rows_Qm)``, the m best vocabulary rows by inner product with any
            vectors, by the index that is served; -1 where it finds fewer.
    """

    histories: Sequences
    interests_BKD: Tensor
    item_vectors_VD: Tensor
    search: Callable[[Tensor, int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class SourceCandidates:
    """Candidates in flat lists, in any order; no pair of user and item occurs twice.

    Attributes:
        users_N: int64, places 0..B-1.
        rows_N: int64, vocabulary rows 1..V.
        scores_N: float32, 0..1, more is better; an item that is not here counts as 0.
    """

    users_N: Tensor
    rows_N: Tensor
    scores_N: Tensor


class CandidateSource(Part[OptionsT_co], ABC):
    """The base of candidate sources, which find candidates of their own; a learned weight blends them with those of
    interest search.

    What a source remembers is made once, when a version is published (``fit``), and lies in the store as plain tensors.
    Filters, seen items and the blend are not its business. ``options`` are those of its ``Options``.
    """

    description: ClassVar[str]  # one sentence

    def __init__(self, state: Mapping[str, Tensor], options: OptionsT_co | None = None) -> None:
        self.state = state
        self.options: OptionsT_co = self.checked_options(options)

    @classmethod
    def fit(cls, histories: Sequences, n_items: int, options: OptionsT_co | None = None) -> dict[str, Tensor]:
        """Return the tensors that ``find`` needs to remember of the histories of all users (vocabulary rows 1..V; 0 =
        unknown).
        """
        return {}

    @abstractmethod
    def find(self, inputs: SourceInputs, k: int) -> SourceCandidates:
        """Return at most ``k`` candidates for each user; a user it has nothing for is left out.

        A user's candidates depend on nobody else of the batch.
        """
