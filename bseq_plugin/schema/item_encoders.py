"""The contract of item encoders: from an item's row of the items table to a vector.

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
