"""Properties of items beside their id: attributes from the caller, popularity from the log.

Shape letters: V catalogue items (tables have V + 1 rows, row 0 for unknown items), A attributes, P priors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd

from bseq_plugin.errors import SchemaError
from bseq_plugin.events.events import DAY_US, ITEM
from bseq_plugin.events.sequences import Sequences
from bseq_plugin.events.vocabulary import Vocabulary


@dataclass(frozen=True)
class ItemAttributes:
    """Categories of items, such as department or brand.

    Attributes:
        names: A attribute names.
        codes_VA: int64 [V + 1, A], in one id space for all attributes: attribute a has codes from ``starts[a]`` on, the
            first of which stands for a missing value and for unknown items.
        starts: int64 [A + 1]; the last entry is the number of codes.
    """

    names: tuple[str, ...]
    codes_VA: np.ndarray
    starts: np.ndarray

    @property
    def n_codes(self) -> int:
        """The number of rows of the attribute table."""
        return int(self.starts[-1])

    @property
    def digest(self) -> str:
        """The sha256 of everything: two tables with the same one teach the same."""
        content = [json.dumps(self.names).encode(), self.codes_VA.tobytes(), self.starts.tobytes()]
        return hashlib.sha256(b"".join(content)).hexdigest()

    @classmethod
    def from_frame(cls, items: pd.DataFrame, names: Sequence[str], vocabulary: Vocabulary) -> ItemAttributes:
        """Look up ``names`` for every item of the vocabulary; items that ``items`` lacks have missing values.

        Raises SchemaError if a column is missing or an item is there twice.
        """
        check_items(items, names)
        rows = vocabulary.item_rows(items[ITEM])
        known = rows > 0
        codes_VA = np.zeros((vocabulary.n_items + 1, len(names)), np.int64)
        starts = [0]
        for place, name in enumerate(names):
            # only values that a catalogue item has get a row
            values, labels = pd.factorize(items[name][known], sort=True)
            codes_VA[rows[known], place] = values + 1  # pandas' -1 for a missing value becomes 0
            codes_VA[:, place] += starts[-1]
            starts.append(starts[-1] + len(labels) + 1)
        return cls(tuple(names), codes_VA, np.array(starts))


class PopularityPrior:
    """Popularity columns: log(1 + users who had an item in the ``days`` before an instant), one for each span of days.

    A catalogue's taste drifts faster than a model is retrained; columns that are read off the log at the instant of
    the request keep up without training. They are part of the item vectors, so that search stays an inner product.
    """

    def __init__(self, sequences: Sequences, n_items: int, days: Sequence[float]) -> None:
        if days and sequences.timestamps is None:
            raise SchemaError("objective.popularity_days needs a log with times; leave it empty")
        self.sequences = sequences
        self.n_items = n_items
        self.days = tuple(days)
        self.at = cache(self._at)  # instants repeat: training draws them from a small grid

    def _at(self, at_us: int) -> np.ndarray:
        """Return float32 [V + 1, P], from events in [at - days, at)."""
        priors_VP = np.zeros((self.n_items + 1, len(self.days)), np.float32)
        for place, days in enumerate(self.days):
            recent = self.sequences.between(at_us - int(days * DAY_US), at_us)
            pairs = np.unique(recent.user_index * (self.n_items + 1) + recent.items)
            counts = np.bincount(pairs % (self.n_items + 1), minlength=self.n_items + 1)
            priors_VP[:, place] = np.log1p(counts)
        priors_VP[0] = 0.0
        return priors_VP


def check_items(items: pd.DataFrame, columns: Sequence[str]) -> None:
    """Raise SchemaError if the items table lacks ``item_id`` or one of ``columns``, or has an item twice."""
    for name in (ITEM, *columns):
        if name not in items:
            raise SchemaError(f"the items table lacks column {name!r}; found {[str(c) for c in items.columns]}")
    if items[ITEM].duplicated().any():
        twice = items.loc[items[ITEM].duplicated(), ITEM].tolist()[0]
        raise SchemaError(f"the items table has item {twice!r} twice; keep one row an item")
