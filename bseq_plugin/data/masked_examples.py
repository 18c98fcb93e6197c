"""The objective "masked": events hidden anywhere in a history, to be found from those around them."""

from __future__ import annotations

import numpy as np

from bseq_plugin.data.batches import RandomNumbers
from bseq_plugin.data.examples import Examples, ExampleSource, share
from bseq_plugin.events.sequences import Sequences, places_of_runs


class MaskedEvents(ExampleSource):
    """The Cloze objective of BERT4Rec (Sun et al., CIKM 2019, section 3.6).

    Each event is hidden with the chance ``mask_share``, and of each history at least one. With the same chance a
    history whose last event is a target hides that one alone, which is what serving asks.
    """

    def __init__(self, sequences: Sequences, max_length: int, of_type: np.ndarray | None, mask_share: float) -> None:
        super().__init__(sequences.latest(max_length), of_type)
        self.mask_share = mask_share
        passed = np.concatenate([[0], np.cumsum(self.weights > 0)])
        n_targets = passed[self.sequences.offsets[1:]] - passed[self.sequences.offsets[:-1]]
        self.users = np.flatnonzero((n_targets > 0) & (self.sequences.lengths > 1))
        self.lengths = self.sequences.lengths[self.users]

    def examples(self, users: np.ndarray, rank: int, world_size: int, random: RandomNumbers) -> Examples:
        """Return this rank's examples from a global batch of users."""
        every = self.sequences.take(users)
        weights = self.weights[places_of_runs(self.sequences.offsets[:-1][users], self.sequences.offsets[1:][users])]
        hidden = self._hidden(every, weights, random())
        part, counts = share(np.arange(len(users)), rank, world_size)
        own = every.take(part)
        first = int(every.offsets[part[0]])
        rows = np.flatnonzero(hidden[first : first + own.n_events]) if counts else np.empty(0, np.int64)
        return Examples(
            own,
            rows,
            own.items[rows],
            np.arange(len(rows)),
            weights[first + rows],
            float(weights[hidden].sum(dtype=np.float64)),
            every.items[hidden],
        )

    def _hidden(self, histories: Sequences, weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return bool [T], which events of a global batch are hidden."""
        may = weights > 0
        hidden = (rng.random(histories.n_events) < self.mask_share) & may
        users = histories.user_index
        last = np.full(histories.n_users, -1)
        np.maximum.at(last, users[may], np.flatnonzero(may))
        only_last = (rng.random(histories.n_users) < self.mask_share) & (last == histories.offsets[1:] - 1)
        hidden &= ~only_last[users]
        none = np.bincount(users[hidden], minlength=histories.n_users) == 0
        hidden[last[only_last | none]] = True
        return hidden
