"""Heads by kind and name, with their options.

Shape letters: C categories, V items, D width of their vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

import bseq_plugin as bseq
from bseq_behaviour.contract.heads import BehaviourHead, BinaryHead, CatalogueHead, CountHead, SequenceHead
from bseq_behaviour.contract.registry import head_manager


@dataclass(frozen=True)
class HeadChoice:
    """A head by name, and options other than its own defaults."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, chosen: str | HeadChoice) -> HeadChoice:
        """A name alone is a choice too."""
        return cls(chosen) if isinstance(chosen, str) else chosen


def checked_head(kind: str, chosen: str | HeadChoice) -> tuple[type[Any], bseq.PartOptions]:
    """The class and its options; ``kind`` is "binary", "catalogue", "count" or "sequence".

    Raises UsageError for a name that no head of the kind has, RecipeError for options that it does not take.
    """
    choice = HeadChoice.of(chosen)
    part = head_manager().part(f"{kind} head", choice.name)
    return part, bseq.parse_options(part.Options, choice.options, f"options of {kind} head {choice.name!r}")


def binary_head(chosen: str | HeadChoice, dim: int, n_tasks: int) -> BinaryHead:
    """Raises as ``checked_head``, and PluginError for a head that can't be made so."""
    head: BinaryHead = _made("binary", chosen, dim, n_tasks)
    return head


def catalogue_head(chosen: str | HeadChoice, dim: int) -> CatalogueHead:
    """Raises as ``binary_head``."""
    head: CatalogueHead = _made("catalogue", chosen, dim)
    return head


def count_head(chosen: str | HeadChoice, dim: int, usual_C: Tensor) -> CountHead:
    """Raises as ``binary_head``."""
    head: CountHead = _made("count", chosen, dim, usual_C)
    return head


def sequence_head(
    chosen: str | HeadChoice, state_dim: int, item_vectors_VD: Tensor, n_event_types: int, n_steps: int
) -> SequenceHead:
    """Raises as ``binary_head``, and UsageError for ``n_steps`` below 1."""
    head: SequenceHead = _made("sequence", chosen, state_dim, item_vectors_VD, n_event_types, n_steps)
    return head


def _made(kind: str, chosen: str | HeadChoice, *sizes: Any) -> Any:
    part, options = checked_head(kind, chosen)
    try:
        return part(*sizes, options)
    except bseq.BseqError:
        raise
    except Exception as error:  # a third party's constructor can fail in any way
        raise bseq.PluginError(
            f"{kind} head {part.name!r} can't be made: {type(error).__name__}: {error}; its __init__ has to take what "
            f"{kind.capitalize()}Head's takes: repair the plugin it comes from"
        ) from error


def load_weights(head: BehaviourHead, weights: Mapping[str, Tensor]) -> None:
    """Raises RunError for weights of another head: of a plugin that has changed, say."""
    try:
        head.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise bseq.RunError(
            f"the saved {head.answer} head {head.name!r} does not fit its description: {error}"
        ) from None
