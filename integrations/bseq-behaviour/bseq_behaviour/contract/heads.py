"""The base classes of heads: from what an encoder says of users to answers about what they will do.

There is one class for each kind of answer. All kinds come in by the hook ``bseq_heads``.

Shape letters: N rows (a user at an instant), B users, D width, K tasks or interests, C categories, M states in memory,
S width of a state, J steps, V items, E event types with the unknown one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bseq_plugin as bseq
from bseq_behaviour.contract.answers import checked, checked_steps


class BehaviourHead(nn.Module, ABC):
    """What all heads have in common. Subclass one of the four kinds: ``BinaryHead``, ``CatalogueHead``, ``CountHead``
    or ``SequenceHead``.

    Subclasses set ``name`` and, if they have settings, an ``Options`` model. Users do not look at each other. What was
    learned is all in ``state_dict``.

    Attributes:
        answer: "binary", "catalogue", "count" or "sequence"; a head is asked for by kind and name.
    """

    name: ClassVar[str]
    answer: ClassVar[str]
    Options: ClassVar[type[bseq.PartOptions]] = bseq.PartOptions

    def __init__(self, options: Any = None) -> None:
        super().__init__()
        self.options: Any = self.Options() if options is None else options


class BinaryHead(BehaviourHead):
    """One logit a task from a user vector; the tasks are yes-or-no questions (``bseq_behaviour.propensity.tasks``)."""

    answer = "binary"

    def __init__(self, dim: int, n_tasks: int, options: Any = None) -> None:
        super().__init__(options)
        self.dim = dim
        self.n_tasks = n_tasks

    @abstractmethod
    def forward(self, vectors_ND: Tensor) -> Tensor:
        """``logits_NK`` float, for float ``vectors_ND`` of about unit variance; N may be 0."""


class CatalogueHead(BehaviourHead):
    """What the whole catalogue is scored with: the next item, or everything of a window (dense all-action).

    The score of an item is the largest inner product of its vector and a query of the user.
    """

    answer = "catalogue"

    def __init__(self, dim: int, options: Any = None) -> None:
        super().__init__(options)
        self.dim = dim

    @abstractmethod
    def forward(self, interests_BKD: Tensor) -> Tensor:
        """``queries_BKD`` float, for float ``interests_BKD``, to which gradients must go back; B may be 0."""


class CountHead(BehaviourHead):
    """How many units of each category a user will take in a week: demand is the sum over the users.

    Args:
        usual_C: float >= 0, units a week that are usual; where a head may begin.
    """

    answer = "count"

    def __init__(self, dim: int, usual_C: Tensor, options: Any = None) -> None:
        super().__init__(options)
        self.dim = dim
        self.n_categories = len(usual_C)

    @abstractmethod
    def forward(self, vectors_ND: Tensor, recent_NC: Tensor) -> Tensor:
        """``rates_NC`` float > 0, units a week; N may be 0.

        Args:
            vectors_ND: float, of about unit variance.
            recent_NC: float >= 0, units a week that the user took lately.
        """

    def loss(self, vectors_ND: Tensor, recent_NC: Tensor, units_NC: Tensor) -> Tensor:
        """A scalar, what training lowers: the mean Poisson deviance, halved, up to a constant.

        Override it for another distribution, or where the logarithm of a rate is at hand. Raises PluginError for rates
        of another shape, or below 0.
        """
        rates_NC = checked(self, self(vectors_ND, recent_NC), (len(vectors_ND), self.n_categories), least=0.0)
        return F.poisson_nll_loss(rates_NC, units_NC, log_input=False)


@dataclass(frozen=True)
class DecoderMemory:
    """What a ``SequenceHead`` reads of B users.

    Attributes:
        states_BMS: float, the latest states of the encoder, oldest first, padded at the right.
        items_BM, types_BM: int64, rows of the items and types of these events; what stands in the padding is not read.
        padded_BM: bool, True where there is no state.
        interest_BD: float, the left-hand side of the encoder's score.
    """

    states_BMS: Tensor
    items_BM: Tensor
    types_BM: Tensor
    padded_BM: Tensor
    interest_BD: Tensor

    def take(self, users: Tensor) -> DecoderMemory:
        """Of the users at these places, repeats allowed."""
        return DecoderMemory(
            self.states_BMS[users], self.items_BM[users], self.types_BM[users], self.padded_BM[users],
            self.interest_BD[users],
        )  # fmt: skip

    def counts(self, n_rows: int) -> Tensor:
        """float32 [B, n_rows], how often each item is among these events."""
        there_BM = (~self.padded_BM).float()
        return torch.zeros(len(there_BM), n_rows).scatter_add(1, self.items_BM * ~self.padded_BM, there_BM)


class SequenceHead(BehaviourHead):
    """A decoder over the states of an encoder: what a user does next, an item and an event type a step.

    Args:
        state_dim: S.
        item_vectors_VD: float [V + 1, D], frozen; row 0 is the unknown item's. They are no part of ``state_dict``.
        n_event_types: E - 1; 0 for a log without types.
        n_steps: the most that are asked.

    Raises UsageError for ``n_steps`` below 1.
    """

    answer = "sequence"
    item_vectors_VD: Tensor

    def __init__(
        self, state_dim: int, item_vectors_VD: Tensor, n_event_types: int, n_steps: int, options: Any = None
    ) -> None:
        super().__init__(options)
        if n_steps < 1:
            raise bseq.UsageError(f"n_steps = {n_steps}; give 1 or more")
        self.state_dim, self.n_event_types, self.n_steps = state_dim, n_event_types, n_steps
        self.register_buffer("item_vectors_VD", item_vectors_VD.detach().clone(), persistent=False)

    @abstractmethod
    def forward(self, memory: DecoderMemory, items_BJ: Tensor, types_BJ: Tensor) -> tuple[Tensor, Tensor]:
        """``(item logits [B, J, V + 1], type logits [B, J, E])`` of each step, from memory and the steps before it.

        The logit of item 0 is -inf: the unknown item is no answer. B may be 0. ``check_steps`` raises UsageError for
        more than ``n_steps`` steps.

        Args:
            items_BJ, types_BJ: int64, the steps that were taken (teacher forcing); the last one is not read.
        """

    def step(self, memory: DecoderMemory, items_BJ: Tensor, types_BJ: Tensor) -> tuple[Tensor, Tensor]:
        """``([B, V + 1], [B, E])``, what ``forward`` says of the last step alone. Searches ask it once a step: override
        it where that saves work.
        """
        item_logits, type_logits = self(memory, items_BJ, types_BJ)
        return item_logits[:, -1], type_logits[:, -1]

    def loss(self, memory: DecoderMemory, items_BJ: Tensor, types_BJ: Tensor) -> Tensor:
        """Mean cross-entropy of items and of types, added; a step of item 0 (there was none) does not count.

        Raises PluginError for logits of another shape, or an unknown item that may be an answer.
        """
        logits, type_logits = checked_steps(self, self(memory, items_BJ, types_BJ), tuple(items_BJ.shape))
        there_BJ = items_BJ > 0
        if not bool(there_BJ.any()):
            nothing: Tensor = 0.0 * type_logits.sum()
            return nothing
        of_items = F.cross_entropy(logits[there_BJ], items_BJ[there_BJ])
        total: Tensor = of_items + F.cross_entropy(type_logits[there_BJ], types_BJ[there_BJ])
        return total

    def check_steps(self, items_BJ: Tensor) -> None:
        """Raises UsageError for more steps than this head has."""
        if items_BJ.shape[1] > self.n_steps:
            raise bseq.UsageError(
                f"{items_BJ.shape[1]} steps are given, this decoder has {self.n_steps}; give it no more"
            )
