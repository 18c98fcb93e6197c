"""Batches of a log larger than memory: every partition is a stream, every rank reads its own ones.

A global batch takes its share of users from every stream, in proportion to their sizes, so that all streams end an
epoch together. Streams are dealt out to the ranks; a number of ranks that divides their number sees the same global
batches as any other. A stream is read a few row groups at a time, in an order of their own each epoch, and the users of
these are shuffled: that is the shuffle buffer, and all that is held in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from bseq_plugin.data.batches import ORDER_STREAM, Batch, RandomNumbers, step_random
from bseq_plugin.data.examples import Examples, NextEvent
from bseq_plugin.data.partitions import PartitionedSequences
from bseq_plugin.data.training_data import TrainingData
from bseq_plugin.errors import RecipeError, SchemaError, UsageError
from bseq_plugin.events.sequences import Sequences
from bseq_plugin.events.vocabulary import Vocabulary
from bseq_plugin.recipe.recipe import Recipe

BUFFERED_USERS = 32_768  # of all streams of a global batch together
Gather = Callable[[Any], list[Any]]  # the values of all ranks


class StreamedData(TrainingData):
    """``TrainingData`` over partitions, with ``objective.kind = "next"``.

    Args:
        training: cuts the part that may be trained on out of whole histories.
        gather: brings the ranks' values together; called once a batch, in the same order on all ranks. The weight of
            the targets of a global batch is known only then.

    Raises:
        UsageError: the number of ranks does not divide that of the partitions.
        RecipeError: settings that need the whole log in memory.
    """

    def __init__(
        self,
        log: PartitionedSequences,
        vocabulary: Vocabulary,
        recipe: Recipe,
        training: Callable[[Sequences], Sequences],
        gather: Gather = lambda value: [value],
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        check_streams(len(log.partitions), world_size, recipe)
        self._settle(vocabulary, recipe, rank, world_size)
        self.log, self.training, self.gather = log, training, gather
        n_streams = len(log.partitions)
        own = range(rank * n_streams // world_size, (rank + 1) * n_streams // world_size)
        self.streams = [Stream(log, number, vocabulary, recipe.training.seed, n_streams) for number in own]

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches of an epoch, equal on every rank."""
        return max(1, self.recipe.training.batch.n_batches(self.log.n_users, self.log.n_events))

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield this rank's batches of ``epoch``, from step ``start`` on."""
        steps = self.steps_per_epoch
        parts = [stream.parts(epoch, start, steps) for stream in self.streams]
        for step in range(start, steps):
            taken = [part for part in (next(part) for part in parts) if part is not None]
            histories = self.training(Sequences.join(taken)) if taken else self.log.nobody()
            random = step_random(self.recipe.training.seed, epoch, step)
            yield self._batch_of(self._examples(histories, random), random)

    def _examples(self, histories: Sequences, random: RandomNumbers) -> Examples:
        source = NextEvent(histories, self.recipe.encoder.max_length, self.of_type)
        if len(source.users):
            examples = source.examples(source.users, 0, 1, random)
        else:  # every rank takes part in a step's look-ups, with a user who has done nothing if need be
            none = np.empty(0, np.int64)
            examples = Examples(self.log.nobody(), none, none, none, np.empty(0, np.float32), 0.0, none)
        mixed = self.recipe.negatives.kind == "mixed"
        own = (examples.total_weight, np.unique(examples.batch_targets) if mixed else None)
        every = self.gather(own)
        targets = np.concatenate([ids for _, ids in every]) if mixed else examples.batch_targets
        return replace(examples, total_weight=sum(weight for weight, _ in every), batch_targets=targets)


def check_streams(n_partitions: int, world_size: int, recipe: Recipe) -> None:
    """Raise UsageError or RecipeError for what ``StreamedData`` can't do."""
    if n_partitions % world_size:
        fitting = [n for n in range(1, n_partitions + 1) if n_partitions % n == 0]
        raise UsageError(
            f"{n_partitions} partitions can't be dealt out to {world_size} processes; use "
            f"{', '.join(map(str, fitting))} of them, or make the partitions again: `bseq sequences --partitions "
            f"{world_size * max(1, n_partitions // world_size)}`"
        )
    if recipe.objective.kind != "next":
        raise RecipeError(
            f"objective.kind = {recipe.objective.kind!r} needs the log in memory; use 'next', or a smaller log"
        )


class Stream:
    """The users of one partition, in an order that is a function of (seed, epoch, partition)."""

    def __init__(
        self, log: PartitionedSequences, number: int, vocabulary: Vocabulary, seed: int, n_streams: int
    ) -> None:
        self.log, self.number, self.vocabulary, self.seed = log, number, vocabulary, seed
        self.group_users = log.row_group_users(number)
        self.n_users = int(self.group_users.sum())
        if self.n_users != log.partitions[number].users:
            raise SchemaError(
                f"partition {log.folder / log.partitions[number].file} has {self.n_users} users, sequences.json says "
                f"{log.partitions[number].users}; copy it again"
            )
        largest = int(self.group_users.max(initial=1))
        self.groups_at_once = max(1, BUFFERED_USERS // n_streams // largest)

    def parts(self, epoch: int, start: int, steps: int) -> Iterator[Sequences | None]:
        """Yield what the steps from ``start`` on take: users from ``step * n // steps`` on, None for no users."""
        first = start * self.n_users // steps
        users = self._users(epoch, first)
        held: list[Sequences] = []
        for step in range(start, steps):
            wanted = (step + 1) * self.n_users // steps - step * self.n_users // steps
            while sum(part.n_users for part in held) < wanted:
                held.append(next(users))
            if not wanted:
                yield None
                continue
            joined = held[0] if len(held) == 1 else Sequences.join(held)
            yield joined.take(np.arange(wanted))
            held = [joined.take(np.arange(wanted, joined.n_users))]

    def _users(self, epoch: int, first: int) -> Iterator[Sequences]:
        """Yield the users from place ``first`` of the epoch's order on, one buffer after the other."""
        rng = np.random.default_rng([self.seed, ORDER_STREAM, epoch, self.number])
        order = rng.permutation(len(self.group_users))
        passed = 0
        for place in range(0, len(order), self.groups_at_once):
            groups = order[place : place + self.groups_at_once]
            n_users = int(self.group_users[groups].sum())
            inside = rng.permutation(n_users)  # drawn even if it is skipped: the next ones must be the same
            passed += n_users
            if passed <= first:
                continue
            skipped = max(0, first - (passed - n_users))
            yield self.log.read(self.number, groups.tolist(), self.vocabulary).take(inside[skipped:])
