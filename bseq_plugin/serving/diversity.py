"""How much a list may repeat itself: candidates chosen one by one, those of categories already there counting less.

Shape letters: B users, P candidates a user that are chosen from, N hits of all users in one flat list, V items.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pandas as pd

from bseq_plugin.errors import UsageError
from bseq_plugin.events.ids import ids_like
from bseq_plugin.events.vocabulary import Vocabulary
from bseq_plugin.serving.hits import Hits

Counted = Literal["pairs", "categories"]


@dataclass(frozen=True)
class Diversity:
    """Lists that are worth more the less they repeat their categories; each step takes the candidate that adds most.

    0 leaves the order by score. What is counted decides on what a list is worth:

    - "pairs": ``sum of scores + weight * number of pairs of different categories``, the controllable aggregation of
      ComiRec (Cen et al., KDD 2020, section 3.4). A weight far above the differences of scores goes through the
      categories in turn.
    - "categories": ``sum of scores + weight * number of categories``. The best candidate of each category has the
      weight on top of its score, and nothing else is moved: a list gives up no more than ``weight`` of score for a
      category that it would not have had. Among the candidates no list of that length is worth more.

    Attributes:
        weight: 0 or more, in units of the score.
        categories: item id -> category; an item without one differs from every other.
        pool: how many times k candidates are chosen from, 1 or more.
        counts: "pairs" or "categories".
    """

    weight: float
    categories: Mapping[object, object]
    pool: int = 4
    counts: Counted = "pairs"

    def resolve(self, vocabulary: Vocabulary) -> RowDiversity:
        """Return the rule in rows. Raises UsageError for a value out of range."""
        if isinstance(self.weight, bool) or not isinstance(self.weight, int | float) or not 0 <= self.weight < np.inf:
            raise UsageError(f"diversity weight = {self.weight!r}; give a number of 0 or more")
        if isinstance(self.pool, bool) or not isinstance(self.pool, int | np.integer) or self.pool < 1:
            raise UsageError(f"diversity pool = {self.pool!r}; give a whole number of 1 or more")
        if not isinstance(self.categories, Mapping):
            raise UsageError(f"diversity categories is {type(self.categories).__name__}; give {{item id: category}}")
        if self.counts not in get_args(Counted):
            raise UsageError(f"diversity counts = {self.counts!r}; use 'pairs' or 'categories'")
        codes_V = np.full(vocabulary.n_items + 1, -1)
        if self.categories:
            codes, _ = pd.factorize(pd.Series(list(self.categories.values()), dtype=object))  # -1 where it is missing
            items = ids_like(self.categories.keys(), vocabulary.item_ids, "diversity categories' item ids")
            codes_V[vocabulary.item_rows(items)] = codes
        return RowDiversity(float(self.weight), codes_V[1:], int(self.pool), self.counts)


@dataclass(frozen=True)
class RowDiversity:
    """``Diversity`` in index rows; ``codes_V`` is -1 for an item without a category."""

    weight: float
    codes_V: np.ndarray
    pool: int
    counts: Counted = "pairs"

    def chosen(self, hits: Hits, k: int) -> np.ndarray:
        """Return int64, places in ``hits`` of at most k of each user, in the order in which they are taken."""
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
        take = _of_categories if self.counts == "categories" else _of_pairs
        taken_Bk = take(gains_BP, codes_BP, self.weight, min(k, gains_BP.shape[1]))
        chosen: np.ndarray = np.take_along_axis(places_BP, taken_Bk, 1)[taken_Bk >= 0]
        return chosen


def _of_pairs(gains_BP: np.ndarray, codes_BP: np.ndarray, weight: float, k: int) -> np.ndarray:
    """Return int64 [B, k], places in the rows of scores (which are overwritten), -1 where nothing is left."""
    taken_Bk, every = np.empty((len(gains_BP), k), np.int64), np.arange(len(gains_BP))
    for step in range(k):
        best_B = gains_BP.argmax(1)  # the first of equal ones: the better score
        taken_Bk[:, step] = np.where(gains_BP[every, best_B] > -np.inf, best_B, -1)
        # every pair of different categories counts, so what an alike candidate loses is what tells them apart
        gains_BP -= weight * (codes_BP == codes_BP[every, best_B][:, None])
        gains_BP[every, best_B] = -np.inf
    return taken_Bk


def _of_categories(scores_BP: np.ndarray, codes_BP: np.ndarray, weight: float, k: int) -> np.ndarray:
    """Return what ``_of_pairs`` does, without a loop: a category's first candidate is always taken before its others,
    so that what each of them adds is known from the beginning, and the k largest are the best list.
    """
    by_code_BP = np.argsort(codes_BP, axis=1, kind="stable")
    sorted_BP = np.take_along_axis(codes_BP, by_code_BP, 1)
    fresh_BP = np.diff(sorted_BP, axis=1, prepend=sorted_BP[:, :1] - 1) != 0
    first_BP = np.empty_like(fresh_BP)
    np.put_along_axis(first_BP, by_code_BP, fresh_BP, 1)
    gains_BP = scores_BP + weight * first_BP
    taken_Bk = np.argsort(-gains_BP, axis=1, kind="stable")[:, :k]
    return np.where(np.take_along_axis(gains_BP, taken_Bk, 1) > -np.inf, taken_Bk, -1)
