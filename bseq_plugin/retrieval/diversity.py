"""How much a list may repeat itself: candidates chosen one by one, those of categories already there counting less.

Shape letters: B users, P candidates a user that are chosen from, N hits of all users in one flat list, V items.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from bseq_plugin.data.vocabulary import Vocabulary
from bseq_plugin.errors import UsageError
from bseq_plugin.retrieval.hits import Hits


@dataclass(frozen=True)
class Diversity:
    """The controllable aggregation of ComiRec (Cen et al., KDD 2020, section 3.4), greedily.

    The list S of a user is to have a large ``sum of scores + weight * number of pairs of different categories``. Each
    step takes the candidate that adds most. 0 leaves the order by score; a weight far above the differences of scores
    goes through the categories in turn.

    Attributes:
        weight: 0 or more, in units of the score.
        categories: item id -> category; an item without one differs from every other.
        pool: how many times k candidates are chosen from, 1 or more.
    """

    weight: float
    categories: Mapping[object, object]
    pool: int = 4

    def resolve(self, vocabulary: Vocabulary) -> RowDiversity:
        """The same in rows. Raises UsageError for a weight or a pool out of range."""
        if isinstance(self.weight, bool) or not isinstance(self.weight, int | float) or not 0 <= self.weight < np.inf:
            raise UsageError(f"diversity weight = {self.weight!r}; give a number of 0 or more")
        if isinstance(self.pool, bool) or not isinstance(self.pool, int | np.integer) or self.pool < 1:
            raise UsageError(f"diversity pool = {self.pool!r}; give a whole number of 1 or more")
        if not isinstance(self.categories, Mapping):
            raise UsageError(f"diversity categories is {type(self.categories).__name__}; give {{item id: category}}")
        codes_V = np.full(vocabulary.n_items + 1, -1)
        if self.categories:
            codes, _ = pd.factorize(pd.Series(list(self.categories.values()), dtype=object))  # -1 where it is missing
            codes_V[vocabulary.item_rows(list(self.categories))] = codes
        return RowDiversity(float(self.weight), codes_V[1:], int(self.pool))


@dataclass(frozen=True)
class RowDiversity:
    """``Diversity`` in index rows; ``codes_V`` is -1 for an item without a category."""

    weight: float
    codes_V: np.ndarray
    pool: int

    def chosen(self, hits: Hits, k: int) -> np.ndarray:
        """int64, places in ``hits`` of at most k of each user, in the order in which they are taken."""
        users, starts = np.unique(hits.users_N, return_index=True)
        if not len(users):
            return np.empty(0, np.int64)
        lengths = np.diff(np.append(starts, len(hits.users_N)))
        places_BP = starts[:, None] + np.arange(lengths.max())
        there_BP = np.arange(lengths.max()) < lengths[:, None]
        places_BP = np.where(there_BP, places_BP, 0)
        gains_BP = np.where(there_BP, hits.scores_N[places_BP].astype(np.float64), -np.inf)
        # Categories are alike or not, so that numbers within a user do; one without a category is one of its own.
        codes_BP = self.codes_V[hits.rows_N[places_BP]]
        codes_BP = np.where(codes_BP < 0, -1 - np.arange(codes_BP.shape[1]), codes_BP)
        taken = np.empty((len(users), min(k, gains_BP.shape[1])), np.int64)
        every = np.arange(len(users))
        for step in range(taken.shape[1]):
            best_B = gains_BP.argmax(1)  # the first of equal ones: the better score
            taken[:, step] = np.where(gains_BP[every, best_B] > -np.inf, places_BP[every, best_B], -1)
            # every pair of different categories counts, so what an alike candidate loses is what tells them apart
            gains_BP -= self.weight * (codes_BP == codes_BP[every, best_B][:, None])
            gains_BP[every, best_B] = -np.inf
        return taken[taken >= 0]
