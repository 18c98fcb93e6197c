"""Values of a column of an items table, where an item may have several: a list, such as genres."""

from __future__ import annotations

import numpy as np
import pandas as pd

from bseq_plugin.errors import SchemaError

LISTS = (list, tuple, set, frozenset, np.ndarray)


def item_values(column: pd.Series) -> tuple[np.ndarray, pd.Series]:
    """Return int64 [M], the places of items (0..N-1, ascending), and their M values, each once an item.

    A missing value is none, and so is an empty list. The order within a list means nothing.

    Raises SchemaError for a list with a missing value in it, or of lists.
    """
    plain = column.reset_index(drop=True)
    listed = plain.map(lambda value: isinstance(value, LISTS)).to_numpy(bool)
    if not listed.any():
        there = plain.notna().to_numpy()
        return np.flatnonzero(there), plain[there]
    items, values = [], []
    for place, value in enumerate(plain):
        several = list(value) if listed[place] else [] if pd.isna(value) else [value]
        for one in several:
            if isinstance(one, (*LISTS, dict)) or pd.isna(one):
                raise SchemaError(
                    f"column {str(column.name)!r} of the items table: row {place} (counted from 0) has {one!r} in its "
                    "list; give text or numbers, and leave missing ones out"
                )
        each = sorted(dict.fromkeys(several), key=lambda one: (type(one).__name__, one))
        items += [place] * len(each)
        values += each
    return np.array(items, np.int64), pd.Series(values, dtype=None if values else object, name=column.name)
