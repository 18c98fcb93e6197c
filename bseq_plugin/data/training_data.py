"""Batches of a run: a pure function of (seed, epoch, step, rank).

So a run can be resumed in the middle of an epoch, and any number of ranks walks through the same global batches.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from bseq_plugin.data.batches import NEGATIVE, ORDER_STREAM, TARGET, Batch, RandomNumbers, history_features, step_random
from bseq_plugin.data.event_features import EventInputs
from bseq_plugin.data.examples import Examples, ExampleSource, NextEvent, NextOfPrefix, TargetWindow
from bseq_plugin.data.items import PopularityPrior
from bseq_plugin.data.masked_examples import MaskedEvents
from bseq_plugin.data.negatives import NegativeSampler
from bseq_plugin.errors import RecipeError, SchemaError
from bseq_plugin.events.sequences import Sequences
from bseq_plugin.events.vocabulary import Vocabulary
from bseq_plugin.recipe.objective import ObjectiveSettings
from bseq_plugin.recipe.recipe import Recipe


def type_weights(objective: ObjectiveSettings, vocabulary: Vocabulary) -> np.ndarray | None:
    """Return float32, the weight of a target by the row of its event type (0 = unknown type); None if all count alike.

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


def example_source(sequences: Sequences, recipe: Recipe, of_type: np.ndarray | None) -> ExampleSource:
    """Return what the recipe's objective makes of histories; ``of_type``: see ``type_weights``."""
    objective, max_length = recipe.objective, recipe.encoder.max_length
    match objective.kind:
        case "next":
            return NextEvent(sequences, max_length, of_type)
        case "prefix":
            return NextOfPrefix(sequences, max_length, of_type)
        case "window":
            return TargetWindow(sequences, max_length, of_type, objective, recipe.items.min_count)
        case "masked":
            return MaskedEvents(sequences, max_length, of_type, objective.share)


class TrainingData:
    """Deterministic batches over the training part of a log.

    Args:
        sequences: the training part only; nothing of validation or test.
        recipe: ``training.batch`` counts the users of a global batch, or bounds its events; each rank gets its share of
            the users.

    Raises:
        SchemaError: if no user has a history and a target.
        RecipeError: the recipe names event types that the log does not have.
    """

    popularity: PopularityPrior | None = None
    source: ExampleSource

    def __init__(
        self, sequences: Sequences, vocabulary: Vocabulary, recipe: Recipe, rank: int = 0, world_size: int = 1
    ) -> None:
        self._settle(vocabulary, recipe, rank, world_size)
        if recipe.popularity_days:
            self.popularity = PopularityPrior(sequences, vocabulary.n_items, recipe.popularity_days)
        self.source = example_source(sequences, recipe, self.of_type)
        if len(self.source.users) == 0:
            raise SchemaError(
                f"none of the {sequences.n_users} users has a history and a target to learn from "
                f"(objective.kind = {recipe.objective.kind!r}); a user needs two or more events"
            )

    def _settle(self, vocabulary: Vocabulary, recipe: Recipe, rank: int, world_size: int) -> None:
        """Set what batches of any log need."""
        self.recipe, self.rank, self.world_size = recipe, rank, world_size
        self.of_type = type_weights(recipe.objective, vocabulary)
        self.negatives = NegativeSampler(vocabulary, recipe.negatives)
        self.inputs = EventInputs.of(recipe.events, recipe.encoder)

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches of an epoch, equal on every rank."""
        return self.recipe.training.batch.n_batches(len(self.source.users) * self.source.passes, self._n_events)

    @property
    def _n_events(self) -> int:
        """The number of events of all histories of an epoch."""
        return int(self.source.lengths.sum()) * self.source.passes

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield this rank's batches of ``epoch``, from step ``start`` on."""
        order = self._order(epoch)
        bounds = self._bounds(order)
        for step in range(start, self.steps_per_epoch):
            chosen = self.source.users[order[bounds[step] : bounds[step + 1]]]
            yield self._batch(chosen, step_random(self.recipe.training.seed, epoch, step))

    def _order(self, epoch: int) -> np.ndarray:
        """Return places in ``source.users``, in the order of the epoch."""
        rng = np.random.default_rng([self.recipe.training.seed, ORDER_STREAM, epoch])
        return np.concatenate([rng.permutation(len(self.source.users)) for _ in range(self.source.passes)])

    def _bounds(self, order: np.ndarray) -> np.ndarray:
        """Return int64 [steps + 1], where each batch begins in ``order``.

        With ``batch.events`` all events are laid in a row and cut into equal parts; a user belongs to the part in which
        its first event falls. No history is longer than a part, so that no batch is empty.
        """
        steps = np.arange(self.steps_per_epoch + 1)
        n_users = self.recipe.training.batch.users
        if n_users is not None:
            return np.minimum(steps * n_users, len(order))
        lengths = self.source.lengths[order]
        return np.searchsorted(np.cumsum(lengths) - lengths, steps * self._n_events / self.steps_per_epoch)

    def _batch(self, users: np.ndarray, random: RandomNumbers) -> Batch:
        return self._batch_of(self.source.examples(users, self.rank, self.world_size, random), random)

    def _batch_of(self, examples: Examples, random: RandomNumbers) -> Batch:
        catalogue = None if examples.at_us is None else self.source.catalogue(examples.at_us)
        sample = self.negatives.draw(catalogue, examples.target_ids, examples.batch_targets, random)
        priors_VP = None if self.popularity is None else self.popularity.at(examples.at_us)
        priors_SP = None
        if priors_VP is not None and sample.places is None:  # else they are those of the negatives
            priors_SP = torch.from_numpy(priors_VP[examples.target_ids])
        n_users, weight = examples.histories.n_users, float(examples.target_weights.sum(dtype=np.float64))
        negatives_per_user = np.zeros(n_users, np.int64)
        # the batch shares its negatives; the first user's row of the jagged tensor holds them
        negatives_per_user[:1] = len(sample.ids)
        features = history_features(
            examples.histories,
            self.inputs,
            {TARGET: _looked_up_targets(examples, sample.places), NEGATIVE: (sample.ids, negatives_per_user)},
        )
        return Batch(
            features,
            torch.from_numpy(examples.state_rows),
            torch.from_numpy(examples.target_state),
            torch.from_numpy(examples.target_ids),
            torch.from_numpy(examples.target_weights),
            torch.from_numpy(sample.ids),
            _tensor(sample.log_expected_count),
            torch.tensor(self.world_size * weight / (examples.total_weight or 1.0)),
            _tensor(sample.places),
            priors_SP,
            None if priors_VP is None else torch.from_numpy(priors_VP[sample.ids]),
        )


def _tensor(values: np.ndarray | None) -> torch.Tensor | None:
    return None if values is None else torch.from_numpy(values)


def _looked_up_targets(examples: Examples, places: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return (ids, how many a user): none where the targets are among the negatives."""
    n_users = examples.histories.n_users
    if places is not None:
        return np.empty(0, np.int64), np.zeros(n_users, np.int64)
    user_of_state = np.searchsorted(examples.histories.offsets, examples.state_rows, side="right") - 1
    return examples.target_ids, np.bincount(user_of_state[examples.target_state], minlength=n_users)
