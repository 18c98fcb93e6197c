"""Baselines: rankers that learn nothing but counts. A model that does not beat them has learnt nothing else either.

The settings were chosen on November 2017 of the completejourney log (grocery baskets), those of the transition graph
come from the Amazon sets. Shape letters: b users of one block, V items (row 0 = unknown), T events.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from bseq_plugin.data import sparse
from bseq_plugin.events.sequences import Sequences

RECENT_DAYS = 28


class Baseline(Protocol):
    """What a baseline is: fitted once on the training part, then scores histories it need not have seen."""

    name: str

    def fit(self, training: Sequences, n_items: int) -> None:
        """Count. ``n_items`` is V; events of unknown items (row 0) are ignored."""

    def scores(self, histories: Sequences) -> Tensor:
        """Return float32 [b, V + 1], larger is better; column 0 has no meaning."""


@dataclass
class Popularity:
    """Everybody gets the items with the most events, of all time or of the last ``days``."""

    days: float | None = None
    at_us: int | None = None
    name: str = field(init=False)
    _score_V: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.name = "popularity" if self.days is None else f"popularity_{self.days:g}d"

    def fit(self, training: Sequences, n_items: int) -> None:
        """See ``Baseline.fit``. Raises SchemaError for ``days`` and a log without times."""
        counts = sparse.item_counts(training, n_items, self.days, self.at_us)
        self._score_V = torch.from_numpy(counts.astype(np.float32))

    def scores(self, histories: Sequences) -> Tensor:
        """See ``Baseline.scores``."""
        return self._score_V.repeat(histories.n_users, 1)


@dataclass(kw_only=True)
class Counted:
    """What every baseline but popularity keeps of the log.

    What it has no opinion on is ranked by recent popularity (28 days, or all events of a log without times), below
    everything that it does rank.
    """

    at_us: int | None = None
    _n_items: int = field(init=False, repr=False)
    _from_us: int | None = field(init=False, repr=False)
    _below_V: np.ndarray = field(init=False, repr=False)

    def fit(self, training: Sequences, n_items: int) -> None:
        """See ``Baseline.fit``."""
        self._n_items, self._from_us = n_items, sparse.counted_from(training, self.at_us)
        days = RECENT_DAYS if training.timestamps is not None else None
        counts = sparse.item_counts(training, n_items, days, self.at_us)
        self._below_V = ((counts + 0.5) / (counts.max() + 1)).astype(np.float32)

    def _filled(self, score_bV: np.ndarray) -> Tensor:
        """Return the scores: those above 0 as they are, 0 and less as popularity in (-1, 0)."""
        return torch.from_numpy(np.where(score_bV > 0, score_bV, self._below_V - 1).astype(np.float32))


@dataclass
class PersonalFrequency(Counted):
    """What a user had most often comes first; equal counts and the rest by recent popularity.

    With ``half_life_days`` an old event counts less. No baseline for new items: there it is recent popularity.
    """

    half_life_days: float | None = None
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = "personal_frequency" if self.half_life_days is None else "personal_frequency_decayed"

    def scores(self, histories: Sequences) -> Tensor:
        """See ``Baseline.scores``."""
        counts = sparse.history_matrix(histories.known(), self._n_items, self.half_life_days, self._from_us).toarray()
        # counts are whole numbers, so that half of a popularity below 1 breaks ties only; decayed ones hardly tie
        tie = 0.5 if self.half_life_days is None else 5e-4
        return self._filled(np.where(counts > 0, counts + tie * self._below_V, 0))
