"""The event types that a loss aims at, and how much each counts."""

from __future__ import annotations

import numpy as np

from bseq_plugin.errors import RecipeError
from bseq_plugin.events.sequences import Sequences
from bseq_plugin.events.vocabulary import Vocabulary
from bseq_plugin.recipe.objective import ObjectiveSettings


def type_weights(objective: ObjectiveSettings, vocabulary: Vocabulary) -> np.ndarray | None:
    """float32, the weight of a target by the row of its event type (0 = unknown type); None if all count alike.

    Raises RecipeError if the objective names a type that the log does not have.
    """
    chosen, weights = objective.event_types, objective.event_type_weights
    if not chosen and not weights:
        return None
    for field, names in (("objective.event_types", chosen), ("objective.event_type_weights", weights)):
        unknown = [name for name in names if name not in vocabulary.event_types]
        if unknown:
            raise RecipeError(
                f"{field} names {unknown}, which the training part of the log does not have; its event types are: "
                f"{', '.join(vocabulary.event_types) or '(none: the log has no column event_type)'}"
            )
    of_type = np.zeros(len(vocabulary.event_types) + 1, np.float32)
    for row, name in enumerate(vocabulary.event_types, 1):
        of_type[row] = weights.get(name, 1.0) if not chosen or name in chosen else 0.0
    if not chosen:
        of_type[0] = 1.0
    return of_type


def target_weights(sequences: Sequences, of_type: np.ndarray | None) -> np.ndarray:
    """Return float32 [T], what each event counts as a target: 0 for an unknown item or a type that is not aimed at."""
    known = (sequences.items > 0).astype(np.float32)
    if of_type is None or sequences.event_types is None:
        return known
    return np.asarray(known * of_type[sequences.event_types])
