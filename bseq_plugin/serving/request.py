"""One question and its answer: the k best of each user, by interest or popularity, under filters and a quota.

Shape letters: B users.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bseq_plugin.events.sequences import Sequences
from bseq_plugin.serving.candidates import Answering, Candidates, interest_candidates, popular_candidates
from bseq_plugin.serving.diversity import RowDiversity
from bseq_plugin.serving.filters import RowFilters, until_enough
from bseq_plugin.serving.histories import readable


@dataclass(frozen=True)
class Request:
    """Whose candidates are asked for, of what, and under which rules.

    Attributes:
        histories: B users, events before the request time only, in rows of the model's vocabulary.
        exclude_seen: leave out the items of the history.
        blend: score by the blend, not by interest alone.
        at_us: the request time, microseconds UTC; None: see ``interest_candidates``.
    """

    served: Answering
    histories: Sequences
    exclude_seen: bool
    blend: bool
    at_us: int | None
    filters: RowFilters

    @cached_property
    def _known_lengths_B(self) -> np.ndarray:
        known = self.histories.user_index[self.histories.items > 0]
        return np.bincount(known, minlength=self.histories.n_users)

    @property
    def n_unknown(self) -> int:
        """Return how many events are of unknown items."""
        return self.histories.n_events - int(self._known_lengths_B.sum())

    def answer(self, k: int, spread: RowDiversity | None = None) -> Candidates:
        """Return the k best of each user; with ``spread`` they are chosen from a longer list."""
        if spread is None:
            return self._within_quota(k)
        longer = self._within_quota(min(k * spread.pool, self.served.model.vocabulary.n_items))
        return longer.take(spread.chosen(longer.hits, k))

    def _within_quota(self, k: int) -> Candidates:
        """Return the k best of each user, within the quota if there is one."""
        quota, n_users = self.filters.quota, self.histories.n_users
        if quota is None:
            return self._best(np.arange(n_users), k)

        def find(users: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
            hits = self._best(users, depth).hits
            return hits.users_N, hits.rows_N

        depths_B = until_enough(find, quota, n_users, k, self.served.model.vocabulary.n_items)
        parts = [self._best(np.flatnonzero(depths_B == depth), int(depth)) for depth in np.unique(depths_B)]
        best = Candidates.join(parts) if parts else self._best(np.arange(n_users), k)
        kept = best.take(quota.keeps(best.hits.users_N, best.hits.rows_N))
        return kept.take(kept.hits.ranks() <= k)

    def _best(self, users: np.ndarray, k: int) -> Candidates:
        """Return the k best of the users at these places, without quota."""
        cold, active = (users[self._known_lengths_B[users] == 0], users[self._known_lengths_B[users] > 0])
        n_users = self.histories.n_users
        parts = [popular_candidates(self.served, cold, k, self.filters.of_users(cold, n_users))]
        if len(active):
            chosen = readable(self.histories.take(active), self.served.model.encoder.event_embedder.inputs)
            rules = self.filters.of_users(active, n_users)
            best = interest_candidates(self.served, chosen, k, self.exclude_seen, self.blend, self.at_us, rules)
            parts.append(best.of_users(active))
        return Candidates.join(parts)
