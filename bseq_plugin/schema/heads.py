"""The base class of heads: from user vectors to answers about what the user will do.

Shape letters: N rows (a user at an instant), D width of the vectors, K tasks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor, nn

from bseq_plugin.schema.options import PartOptions


class BehaviourHead(nn.Module, ABC):
    """One logit a task from a user vector; the tasks are yes-or-no questions (``bseq_plugin.behaviour.tasks``).

    Subclasses set ``name`` and, if they have settings, an ``Options`` model. Rows do not look at each other.
    """

    name: ClassVar[str]
    Options: ClassVar[type[PartOptions]] = PartOptions

    def __init__(self, dim: int, n_tasks: int, options: Any = None) -> None:
        super().__init__()
        self.dim = dim
        self.n_tasks = n_tasks
        self.options: Any = self.Options() if options is None else options

    @abstractmethod
    def forward(self, vectors_ND: Tensor) -> Tensor:
        """``logits_NK`` float, for float ``vectors_ND`` of about unit variance; N may be 0."""
