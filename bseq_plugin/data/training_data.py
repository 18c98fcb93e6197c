"""Batches of a run: a pure function of (seed, epoch, step, rank).

So a run can be resumed in the middle of an epoch, and any number of ranks walks through the same global batches.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from bseq_plugin.data.batches import NEGATIVE, TARGET, Batch, history_features
from bseq_plugin.data.candidates import CandidateSampler
from bseq_plugin.data.examples import Examples, NextEvent, TargetWindow
from bseq_plugin.data.items import PopularityPrior
from bseq_plugin.data.sequences import Sequences
from bseq_plugin.data.vocabulary import Vocabulary
from bseq_plugin.errors import SchemaError
from bseq_plugin.schema.recipe import Recipe

# numpy pads a seed with zeros: without tags, [seed, epoch] and [seed, epoch, 0] would be one stream
ORDER_STREAM, STEP_STREAM = 1, 2


class TrainingData:
    """Deterministic batches over the training part of a log.

    Args:
        sequences: the training part only; nothing of validation or test.
        batch_users of the recipe counts the users of a global batch; each rank gets its share of them.

    Raises:
        SchemaError: if no user has a history and a target.
    """

    def __init__(
        self, sequences: Sequences, vocabulary: Vocabulary, recipe: Recipe, rank: int = 0, world_size: int = 1
    ) -> None:
        self.sequences = sequences
        self.recipe = recipe
        self.rank = rank
        self.world_size = world_size
        self.candidates = CandidateSampler(vocabulary, recipe)
        self.popularity = PopularityPrior(sequences, vocabulary.n_items, recipe.popularity_days)
        self.source = NextEvent(sequences, recipe) if recipe.targets == "next" else TargetWindow(sequences, recipe)
        if len(self.source.users) == 0:
            raise SchemaError(
                f"none of the {sequences.n_users} users has a history and a target to learn from "
                f"(targets = {recipe.targets!r}); a user needs two or more events"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch, equal on every rank."""
        return -(-len(self.source.users) * self.source.passes // self.recipe.batch_users)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """This rank's batches of ``epoch``, from step ``start`` on."""
        users = self._order(epoch)
        for step in range(start, self.steps_per_epoch):
            chosen = users[step * self.recipe.batch_users : (step + 1) * self.recipe.batch_users]
            yield self._batch(chosen, np.random.default_rng([self.recipe.seed, STEP_STREAM, epoch, step]))

    def _order(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self.recipe.seed, ORDER_STREAM, epoch])
        return np.concatenate([rng.permutation(self.source.users) for _ in range(self.source.passes)])

    def _batch(self, users: np.ndarray, rng: np.random.Generator) -> Batch:
        examples = self.source.examples(users, self.rank, self.world_size, rng)
        catalogue = None if examples.at_us is None else self.source.catalogue(examples.at_us)
        ids, log_expected_count = self.candidates.draw(catalogue, rng, self.rank, self.world_size)
        priors_VP = self.popularity.at(examples.at_us) if self.recipe.popularity_days else None
        n_users, n_targets = examples.histories.n_users, len(examples.target_ids)
        places = np.searchsorted(ids, examples.target_ids) if log_expected_count is None else None
        negatives_per_user = np.zeros(n_users, np.int64)
        negatives_per_user[:1] = len(ids)  # the batch shares them; the first user's row of the jagged tensor holds them
        features = history_features(
            examples.histories,
            self.recipe.event_features,
            {TARGET: _looked_up_targets(examples, places), NEGATIVE: (ids, negatives_per_user)},
        )
        return Batch(
            features,
            torch.from_numpy(examples.state_rows),
            torch.from_numpy(examples.target_state),
            torch.from_numpy(examples.target_ids),
            torch.ones(n_targets),
            torch.from_numpy(ids),
            None if log_expected_count is None else torch.from_numpy(log_expected_count),
            torch.tensor(self.world_size * n_targets / max(examples.n_targets, 1)),
            None if places is None else torch.from_numpy(places),
            None if priors_VP is None or places is not None else torch.from_numpy(priors_VP[examples.target_ids]),
            None if priors_VP is None else torch.from_numpy(priors_VP[ids]),
        )


def _looked_up_targets(examples: Examples, places: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """(ids, how many a user): none where the targets are found among the candidates."""
    n_users = examples.histories.n_users
    if places is not None:
        return np.empty(0, np.int64), np.zeros(n_users, np.int64)
    user_of_state = np.searchsorted(examples.histories.offsets, examples.state_rows, side="right") - 1
    return examples.target_ids, np.bincount(user_of_state[examples.target_state], minlength=n_users)
