"""The contract of ranking features.

Shape letters: N candidate rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from bseq_plugin.schema.part import OptionsT_co, Part

if TYPE_CHECKING:
    from bseq_plugin.schema.ranking import FeatureInputs

CATEGORY = "category"  # the unit of a number that is the name of something
VERSION = "version"  # of one that names a model: another at every training, so that no ranker has learned it
EXACT = 2**24  # float32 holds all whole numbers below


class RankingFeature(Part[OptionsT_co], ABC):
    """The base of ranking features: columns for rows of (user, candidate, at), a scalar, a fixed-length vector, or
    several named scalars.

    ``options`` come from ``FeatureSpec.options``. ``group`` is what an ablation takes away together.
    """

    description: ClassVar[str]  # definition, one sentence
    unit: ClassVar[str] = ""
    null_rule: ClassVar[str] = ""  # when a value is NaN
    source: ClassVar[str] = ""  # the paper or system it is taken from
    group: ClassVar[str] = "other"

    def __init__(self, options: OptionsT_co | None = None) -> None:
        self.options: OptionsT_co = self.checked_options(options)

    def columns(self, event_types: tuple[str, ...]) -> tuple[str, ...]:
        """Return the names of the columns; one: a scalar or a vector, several: as many scalars.

        Args:
            event_types: those of the model's vocabulary, ascending.
        """
        return (self.name,)

    @classmethod
    def summary(cls) -> str:
        """Return definition, unit and null rule in one line."""
        unit = f", {cls.unit}" if cls.unit else ""
        return f"{cls.description}{unit}{'; ' if cls.null_rule else ''}{cls.null_rule}"

    @abstractmethod
    def compute(self, inputs: FeatureInputs) -> Tensor:
        """Return float32 [N] for a scalar, [N, width] for a vector, [N, columns] for several; N candidate rows.

        NaN where undefined. A feature with ``unit = "category"`` may return int64 instead, 0 or more and -1 where
        undefined, and has to for names from 2^24 on, which float32 rounds.
        """
