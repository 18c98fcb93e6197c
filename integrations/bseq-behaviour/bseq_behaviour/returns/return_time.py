"""When a user comes back: a hazard at every visit, out of a sequence encoder that reads visits.

Shape letters: U users, N visits, J bins, D width of the states, A numbers of days that are asked.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bseq_plugin as bseq
from bseq_behaviour.columns import DAY_US, EVENT_TYPE
from bseq_behaviour.returns.hazards import Bins
from bseq_behaviour.returns.visits import N_GAPS, N_SIZES, visits_of

HIDDEN = 32
USERS_PER_CALL = 256
MOST_DAYS = 1_000_000.0
FIRST_LOGIT = -1.5  # of every hazard, before anything is learned


def return_recipe(with_values: bool, seed: int = 0) -> bseq.Recipe:
    """What ``fit_return_time`` takes by default: a small recurrent encoder."""
    features = (EVENT_TYPE, "time_of_week", *(["value"] if with_values else []))
    return bseq.Recipe(
        encoder={"name": "gru", "max_length": 128, "dropout": 0.1},
        vectors={"dim": 32},
        events={"features": features},
        training={
            "epochs": 6, "batch": {"users": 64}, "dense": {"rate": 2e-2, "weight_decay": 1e-3}, "seed": seed
        },
    )  # fmt: skip


class ReturnTime(nn.Module):
    """A sequence encoder over visits, and a small network that says the hazards of the next one.

    Attributes:
        until_us: it has learned from what was before this instant, microseconds.
    """

    def __init__(self, recipe: bseq.Recipe, bins: Bins, until_us: int) -> None:
        super().__init__()
        self.recipe, self.bins, self.until_us = recipe, bins, until_us
        self.encoder = bseq.SequenceInterestEncoder(recipe, N_GAPS, N_SIZES, device="cpu")
        self.norm = nn.LayerNorm(recipe.vectors.table_dim)
        self.hidden, self.out = nn.Linear(recipe.vectors.table_dim, HIDDEN), nn.Linear(HIDDEN, bins.n)
        nn.init.constant_(self.out.bias, FIRST_LOGIT)

    def forward(self, histories: bseq.Sequences) -> Tensor:
        """``[N, J]``, logits of the hazards after each visit of ``Visits.histories``, at most ``max_length`` a user."""
        states_ND = bseq.event_states(self.encoder, histories)
        hidden = bseq.dropout(F.silu(self.hidden(self.norm(states_ND))), self.recipe.encoder.dropout, self.training)
        logits_NJ: Tensor = self.out(hidden)
        return logits_NJ

    @torch.no_grad()
    def within(
        self, log: bseq.Sequences, at_us: int, days: Sequence[float], allow_future_model: bool = False
    ) -> np.ndarray:
        """float64 [U, A], the chance of an event within so many days of an instant, given the events before it and that
        there has been none since; NaN for a user without any.

        Args:
            log: the events, not the visits.
            allow_future_model: also an instant that the model has seen beyond.

        Raises:
            UsageError: the model knows what came after, or a number of days is out of range.
            SchemaError: the log has no times, or no values if the model reads them.
        """
        if at_us < self.until_us and not allow_future_model:
            raise bseq.UsageError(
                "that instant lies before the end of training: the model knows what came after it. Choose a later one, "
                "train on less (until_us), or allow_future_model=True"
            )
        days = checked_days(days)
        histories = visits_of(log.known_at(at_us), self.gap_us).histories.latest(self.recipe.encoder.max_length)
        require_values(self.recipe, log)
        self.eval()
        known = np.flatnonzero(histories.lengths)
        chances_UA = np.full((log.n_users, len(days)), np.nan)
        for users in np.array_split(known, max(1, -(-len(known) // USERS_PER_CALL))):
            if len(users):
                chances_UA[users] = self._within(histories.take(users), at_us, days)
        return chances_UA

    def _within(self, histories: bseq.Sequences, at_us: int, days: Sequence[float]) -> np.ndarray:
        newest = torch.from_numpy(histories.offsets[1:] - 1)
        logits_UJ = self(histories)[newest]
        waited_U = (at_us - torch.from_numpy(np.asarray(histories.timestamps))[newest]).double() / DAY_US
        so_far_U = self.bins.log_survival(logits_UJ, waited_U)
        nothing = [self.bins.log_survival(logits_UJ, waited_U + asked) - so_far_U for asked in days]
        chances: np.ndarray = -torch.expm1(torch.stack(nothing, dim=1)).numpy()
        return chances

    def save(self, path: Path) -> None:
        """Write one safetensors file, which has the recipe, the bins and the instant too; whole or not at all."""
        told = {
            "recipe": json.dumps(self.recipe.as_dict()), "edges": json.dumps(self.bins.edges),
            "until_us": str(self.until_us),
        }  # fmt: skip
        bseq.save_sealed(path, self.state_dict(), told)

    @classmethod
    def load(cls, path: Path) -> ReturnTime:
        """Read what ``save`` wrote. Raises RunError if it is not there, or not that."""
        tensors, told = bseq.load_sealed(path, "ReturnTime.save")
        try:
            recipe = bseq.Recipe.stored(json.loads(told["recipe"]), path)
            model = cls(recipe, Bins(tuple(json.loads(told["edges"]))), int(told["until_us"]))
            model.load_state_dict(tensors)
        except (KeyError, TypeError, ValueError, RuntimeError, bseq.BseqError) as error:
            raise bseq.RunError(f"{str(path)!r} is not a file that ReturnTime.save wrote: {error}") from None
        return model.eval()

    @property
    def gap_us(self) -> int:
        """A longer gap begins a visit, where the log has no session ids."""
        return self.encoder.event_embedder.inputs.session_gap_us


def checked_days(days: Sequence[float]) -> list[float]:
    """Raises UsageError unless these are numbers between 0 and ``MOST_DAYS``, told apart by six digits."""
    given = [float(asked) for asked in days]
    if not given or not all(0 < asked <= MOST_DAYS for asked in given) or len({f"{x:g}" for x in given}) < len(given):
        raise bseq.UsageError(f"days = {given}; give one or more positive numbers up to {MOST_DAYS:g}, each once")
    return given


def require_values(recipe: bseq.Recipe, log: bseq.Sequences) -> None:
    """Raises SchemaError if the recipe reads values and the log has none."""
    if "value" in recipe.events.features and log.values is None:
        raise bseq.SchemaError("the recipe reads values, but the log has none; leave value out of events.features")
