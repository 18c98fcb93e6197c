"""Items by a column of the items table, such as their department.

Shape letters: V items (row 0 is the unknown item), G names.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

import bseq_plugin as bseq
from bseq_behaviour.columns import ITEM


def item_codes(
    vocabulary: bseq.Vocabulary, items: pd.DataFrame | None, column: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return (int64 [V + 1], names [G]): the place of each item in the names, -1 for an item that is not counted.

    Args:
        items: a table with ``item_id`` and ``column``; an item that it lacks, or without a value there, is not counted.
        column: default: each item stands for itself.

    Raises UsageError if the table lacks a column.
    """
    if column is None:
        return np.arange(-1, vocabulary.n_items), np.array([str(one) for one in vocabulary.item_ids.tolist()], object)
    if items is None or column not in items or ITEM not in items:
        raise bseq.UsageError(f"{column!r} needs an items table with the columns item_id and {column!r} (--items)")
    values = items.drop_duplicates(ITEM).set_index(ITEM)[column].reindex(vocabulary.item_ids)
    codes, names = pd.factorize(values, sort=True)
    return np.concatenate([[-1], codes]).astype(np.int64), np.asarray([str(one) for one in names], object)
