"""Training of a ``ReturnTime``: every visit of every user is an answer to the visits before it.

Shape letters: N visits of a log, W windows of histories.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

import bseq_plugin as bseq
from bseq_behaviour.fitting import Plan, fit, seeded
from bseq_behaviour.returns.hazards import Bins
from bseq_behaviour.returns.return_time import ReturnTime, require_values, return_recipe
from bseq_behaviour.returns.visits import visits_of

WARM_UP = 0.1  # share of the steps over which the learning rate rises
N_CHECKED, LEAK = 16, 1e-3


@dataclass(frozen=True)
class Waits:
    """The visits before an instant, in windows, with what came after each.

    Attributes:
        users_W, starts_W, ends_W: int64, whose visits ``starts..ends-1`` of the flat arrays a window reads.
        first_W: int64, from which visit on they are answers; those before are answers of an earlier window.
    """

    histories: bseq.Sequences
    days_N: Tensor
    came_N: Tensor
    users_W: np.ndarray
    starts_W: np.ndarray
    ends_W: np.ndarray
    first_W: np.ndarray

    @classmethod
    def of(cls, log: bseq.Sequences, until_us: int, gap_us: int, max_length: int) -> Waits:
        """Windows of ``max_length`` visits, half of them again in the next, so that no answer has less past than that
        unless there was none. Raises SchemaError if nobody has an event before the instant.
        """
        visits = visits_of(log.known_at(until_us), gap_us)
        if visits.histories.n_events == 0:
            raise bseq.SchemaError("nobody has an event before that instant; choose a later one")
        days_N, came_N = visits.days_to_next(until_us)
        offsets, step = visits.histories.offsets, max(1, max_length // 2)
        further = -(-np.maximum(visits.histories.lengths - max_length, 0) // step)
        n_U = (visits.histories.lengths > 0) * (1 + further)
        users_W = np.repeat(np.arange(len(n_U)), n_U)
        place_W = np.arange(len(users_W)) - np.repeat(np.cumsum(n_U) - n_U, n_U)
        begin_W = offsets[:-1][users_W]
        ends_W = np.minimum(begin_W + max_length + place_W * step, offsets[1:][users_W])
        first_W = np.where(place_W > 0, begin_W + max_length + (place_W - 1) * step, begin_W)
        starts_W = np.maximum(begin_W, ends_W - max_length)
        days, came = torch.from_numpy(days_N), torch.from_numpy(came_N)
        return cls(visits.histories, days, came, users_W, starts_W, ends_W, first_W)

    def take(self, windows: np.ndarray) -> tuple[bseq.Sequences, Tensor, Tensor]:
        """(histories, int64 rows of these that are answers, int64 the same among all N visits)."""
        starts, ends = self.starts_W[windows], self.ends_W[windows]
        histories = self.histories.slices(self.users_W[windows], starts, ends)
        visit_T = np.arange(histories.n_events) + np.repeat(starts - histories.offsets[:-1], ends - starts)
        rows = np.flatnonzero(visit_T >= np.repeat(self.first_W[windows], ends - starts))
        return histories, torch.from_numpy(rows), torch.from_numpy(visit_T[rows])


def fit_return_time(
    log: bseq.Sequences,
    until_us: int | None = None,
    recipe: bseq.Recipe | None = None,
    *,
    bins: Bins | None = None,
    horizon_days: float = 28.0,
) -> ReturnTime:
    """Learn from every visit before an instant when the next one comes; the newest visits, whose next one is not known,
    say that it has not come yet (censoring).

    Args:
        until_us: nothing from here on is known; default: the end of the log.
        recipe: the encoder, ``event_features`` (of visits: see ``visits``), ``epochs``, ``learning_rate``,
            ``weight_decay``, ``batch_users``, ``dropout``, ``seed``, ``session_gap_minutes`` and ``time_zone`` are
            read; default: ``return_recipe``.
        horizon_days: visits are weighed as if everybody were asked at every instant about so many days from there.

    Raises:
        SchemaError: a log without times or without events before the instant, or without values that are read.
        RecipeError: an encoder whose states know later events.
        BseqError: the loss is no longer finite.
    """
    if log.timestamps is None or log.n_events == 0:
        raise bseq.SchemaError("a return takes time: give a log with times, and events in it")
    until_us = int(log.timestamps.max()) + 1 if until_us is None else until_us
    recipe = return_recipe(log.values is not None) if recipe is None else recipe
    require_values(recipe, log)
    bins = Bins() if bins is None else bins
    weights_J = bins.instant_weights(horizon_days)
    training = recipe.training
    if training.batch.users is None:
        raise bseq.RecipeError("a return is learned from batches of users; set training.batch = { users = 64 }")
    training = recipe.training
    if training.batch.users is None:
        raise bseq.RecipeError("a return is learned from batches of users; set training.batch = { users = 64 }")
    with seeded(training.seed):
        model = ReturnTime(recipe, bins, until_us)
        waits = Waits.of(log, until_us, model.gap_us, recipe.encoder.max_length)
        require_causal(model, waits.histories)

        def loss(_: int, windows: np.ndarray) -> Tensor:
            histories, rows, visits = waits.take(windows)
            days, came = waits.days_N[visits], waits.came_N[visits]
            return model.bins.losses(model(histories)[rows], days, came, weights_J).mean()

        optimizer = torch.optim.AdamW(
            model.parameters(), lr=training.dense.rate, weight_decay=training.dense.weight_decay
        )
        plan = Plan(training.epochs, training.batch.users, training.seed, warm_up=WARM_UP)
        fit(model, optimizer, loss, [len(waits.users_W)], plan)
    return model


@torch.no_grad()
def require_causal(model: ReturnTime, visits: bseq.Sequences) -> None:
    """Raises RecipeError if what an encoder says of a visit changes with the visits after it: trained at every visit,
    it would read the answer.
    """
    users = np.flatnonzero(visits.lengths > 1)[:N_CHECKED]
    if not len(users):
        return
    probe = copy.deepcopy(model).eval()
    for parameter in probe.parameters():  # what begins at zero may leak later
        nn.init.normal_(parameter, std=0.2)
    whole = visits.take(users).latest(model.recipe.encoder.max_length)
    shorter = whole.without_last(1)
    newest = np.zeros(whole.n_events, bool)
    newest[whole.offsets[1:] - 1] = True
    changed = (probe(whole)[torch.from_numpy(~newest)] - probe(shorter)).abs().max()
    if not float(changed) < LEAK:
        raise bseq.RecipeError(
            f"encoder {model.recipe.encoder.name!r} with options {model.recipe.encoder.options} tells a visit of "
            "those after it, which is what it is to foresee; count positions from the oldest event "
            "(position = 'oldest'), or take an encoder that looks back only"
        )
