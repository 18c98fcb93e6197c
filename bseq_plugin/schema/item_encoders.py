"""What makes a vector of an item from its row of the items table: the base class of an item encoder.

Shape letters: N items, E width of the vectors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from bseq_plugin.schema.part import OptionsT_co, Part

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


class ItemEncoder(Part[OptionsT_co], ABC):
    """Text, categories, numbers or pictures of an item as a vector, without looking at anybody's behaviour.

    So an item that nobody has touched yet has one. A vector depends on its own row of the items table alone, on the
    options and on the weights: that is what allows caching, and items that come after training.
    """

    description: ClassVar[str]  # one sentence

    def __init__(self, options: OptionsT_co | None = None) -> None:
        self.options: OptionsT_co = self.checked_options(options)

    @property
    @abstractmethod
    def width(self) -> int:
        """E."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """The same for two encoders exactly if they give the same vectors: name, options and weights as a sha256."""

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """Columns of the items table that are read, beside ``item_id``."""

    @abstractmethod
    def encode(self, items: pd.DataFrame, progress: bool = False) -> np.ndarray:
        """float32 [N, E], finite, for the rows of ``items``; zeros for an item of which nothing is known.

        ``items`` has ``item_id`` and ``columns``; a value may be missing. ``progress``: show a bar on stderr.
        """
