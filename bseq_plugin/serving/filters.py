"""What may be shown: allow-list, deny-list, items a user must not get, and at most so many items of a category.

The same filters for every index: what a backend can't leave out by itself is asked for in excess and dropped.

Shape letters: B users, V items, P (user, item) pairs, N hits. Rows are index rows 0..V-1.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from bseq_plugin.errors import UsageError
from bseq_plugin.events.ids import ids_like
from bseq_plugin.events.vocabulary import Vocabulary


@dataclass(frozen=True)
class Filters:
    """Given with ids; ids that the catalogue does not have are passed over.

    Attributes:
        allow: only these items (in stock, in a region); None = all.
        deny: none of these.
        exclude: user id -> items that this user must not get.
        categories: item id -> category; an item without one is never limited.
        max_per_category: how many items of one category a user gets at most: one number for all, or one a category
            (those not named are not limited).
    """

    allow: Iterable[object] | None = None
    deny: Iterable[object] = ()
    exclude: Mapping[object, Iterable[object]] = field(default_factory=dict)
    categories: Mapping[object, object] | None = None
    max_per_category: int | Mapping[object, int] | None = None

    def resolve(self, vocabulary: Vocabulary, user_ids: np.ndarray) -> RowFilters:
        """Return the filters in rows. Raises UsageError for an unusable filter, SchemaError for ids of another type."""
        quota = _quota(self, vocabulary)
        denied = _rows(self.deny, vocabulary, "deny")
        allowed_V = None
        if self.allow is not None or len(denied):
            allowed_V = np.full(vocabulary.n_items, self.allow is None)
            allowed_V[_rows(() if self.allow is None else self.allow, vocabulary, "allow")] = True
            allowed_V[denied] = False
        if not isinstance(self.exclude, Mapping):
            raise UsageError(f"exclude is {type(self.exclude).__name__}; give {{user id: [item ids]}}")
        users, rows = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        known = pd.Index(user_ids)
        for user, place, items in zip(
            self.exclude,
            known.get_indexer(pd.Index(ids_like(self.exclude.keys(), user_ids, "exclude's user ids"))),
            self.exclude.values(),
            strict=True,
        ):
            excluded = _rows(items, vocabulary, f"exclude[{user!r}]")
            if place >= 0:
                rows.append(excluded)
                users.append(np.full(len(excluded), place))
        return RowFilters(allowed_V, np.concatenate(users), np.concatenate(rows), quota)


@dataclass(frozen=True)
class Quota:
    """At most ``limits_C[c]`` items of category c; ``codes_V`` is -1 for an item that is not limited."""

    codes_V: np.ndarray
    limits_C: np.ndarray

    def keeps(self, users_N: np.ndarray, rows_N: np.ndarray) -> np.ndarray:
        """Return bool [N]: walking down each user's list (ascending by user, best first), has the item room?"""
        codes_N = self.codes_V[rows_N]
        order = np.lexsort((codes_N, users_N))  # stable: within a user and category the best stay first
        sorted_codes, sorted_users = codes_N[order], users_N[order]
        begins = np.ones(len(order), bool)
        begins[1:] = (np.diff(sorted_codes) != 0) | (np.diff(sorted_users) != 0)
        starts = np.flatnonzero(begins)
        before = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
        kept = np.empty(len(order), bool)
        kept[order] = (sorted_codes < 0) | (before < self.limits_C[sorted_codes])
        return kept


@dataclass(frozen=True)
class RowFilters:
    """``Filters`` in rows. ``allowed_V`` bool [V] or None = all; the pairs are (place of the user, row)."""

    allowed_V: np.ndarray | None
    users_P: np.ndarray
    rows_P: np.ndarray
    quota: Quota | None

    def of_users(self, users: np.ndarray, n_users: int) -> RowFilters:
        """Return the rules of the users at these places of ``n_users``, who become 0..len(users)-1."""
        places = np.full(n_users, -1)
        places[users] = np.arange(len(users))
        kept = places[self.users_P] >= 0
        return RowFilters(self.allowed_V, places[self.users_P[kept]], self.rows_P[kept], self.quota)


def until_enough(
    find: Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]], quota: Quota, n_users: int, k: int, n_items: int
) -> np.ndarray:
    """Return int64 [B], the depth of each user's list of which the quota leaves k items, or the whole catalogue.

    Args:
        find: (places of users, depth) -> (users_N, rows_N), the best ``depth`` of each, as ``Quota.keeps`` takes them.
    """
    depths_B, open_users, depth = np.full(n_users, min(k, n_items)), np.arange(n_users), min(k, n_items)
    while len(open_users):
        depths_B[open_users] = depth
        users_N, rows_N = find(open_users, depth)
        kept_B = np.bincount(users_N[quota.keeps(users_N, rows_N)], minlength=n_users)
        found_B = np.bincount(users_N, minlength=n_users)
        more = (kept_B[open_users] < k) & (found_B[open_users] == depth) & (depth < n_items)
        open_users, depth = open_users[more], min(4 * depth, n_items)
    return depths_B


def _rows(ids: Iterable[object], vocabulary: Vocabulary, what: str) -> np.ndarray:
    """Return the index rows of the known ids."""
    rows = vocabulary.item_rows(ids_like(ids, vocabulary.item_ids, what))
    return rows[rows > 0] - 1


def _quota(filters: Filters, vocabulary: Vocabulary) -> Quota | None:
    categories, limits = filters.categories, filters.max_per_category
    if (categories is None) != (limits is None):
        raise UsageError("give categories and max_per_category together, or neither")
    if categories is None or limits is None:
        return None
    if not isinstance(categories, Mapping | pd.Series):
        raise UsageError(f"categories is {type(categories).__name__}; give {{item id: category}}")
    every = list(categories.values()) if isinstance(categories, Mapping) else categories.tolist()
    for place, category in enumerate(every):
        if not isinstance(category, Hashable):
            item = list(categories.keys())[place]
            raise UsageError(f"the category of item {item!r} is {category!r}; give one text or number")
    if not isinstance(limits, Mapping):
        limits = dict.fromkeys(every, limits)
    for category, limit in limits.items():
        if isinstance(limit, bool) or not isinstance(limit, int | np.integer) or limit < 0:
            raise UsageError(f"max_per_category of {category!r} = {limit!r}; give a whole number of 0 or more")
    codes = {category: code for code, category in enumerate(limits)}
    named = [(item, codes[category]) for item, category in categories.items() if category in codes]
    codes_V = np.full(vocabulary.n_items + 1, -1)
    if named:
        items = ids_like([item for item, _ in named], vocabulary.item_ids, "categories' item ids")
        codes_V[vocabulary.item_rows(items)] = [code for _, code in named]
    return Quota(codes_V[1:], np.array([*limits.values(), 0], np.int64))
