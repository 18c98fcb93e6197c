"""What the catalogue is scored with: the interests, with or without a layer of the objective's own.

Shape letters: B users, K interests, D width.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

import bseq_plugin as bseq
from bseq_behaviour.contract.heads import CatalogueHead


class OwnLayerHead(CatalogueHead):
    """The interests and a linear layer of them, which begins at zero, added.

    What comes next and all that comes are not liked in one order: each objective that has this head has its own.
    """

    name = "own_layer"

    def __init__(self, dim: int, options: Any = None) -> None:
        super().__init__(dim, options)
        self.own = bseq.ZeroLinear(dim, dim)

    def forward(self, interests_BKD: Tensor) -> Tensor:
        """``queries_BKD``."""
        queries_BKD: Tensor = interests_BKD + self.own(interests_BKD)
        return queries_BKD


class InterestsHead(CatalogueHead):
    """The interests as they are: all that is learned is learned by the encoder."""

    name = "interests"

    def forward(self, interests_BKD: Tensor) -> Tensor:
        """``queries_BKD``, the same tensor."""
        return interests_BKD
