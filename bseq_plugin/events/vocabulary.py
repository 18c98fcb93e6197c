"""Item and event-type ids, and their rows of the embedding tables.

Row 0 is the out-of-vocabulary row: unknown ids go there, and it is never a real item.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from bseq_plugin.errors import SchemaError
from bseq_plugin.events.events import EVENT_TYPE, ITEM, Events
from bseq_plugin.events.ids import require_kind

SEARCHED = 1_000_000  # with more items, integer ids are found by bisection


@dataclass(frozen=True)
class Vocabulary:
    """Which item each row is: ``item_ids[i]`` has row ``i + 1``, row 0 is for unknown ones. ``from_events`` puts ids in
    ascending order; a vocabulary of yours keeps your order, and a delta version has new ids behind.

    Attributes:
        item_ids: int64 or str objects [V], unique.
        item_counts: int64 [V], events of each item in the training part of the log.
        event_types: names; type ``event_types[i]`` has row ``i + 1``.
    """

    item_ids: np.ndarray
    item_counts: np.ndarray
    event_types: tuple[str, ...] = ()

    @classmethod
    def from_events(cls, events: Events, min_count: int = 1) -> Vocabulary:
        """The items of ``events`` with at least ``min_count`` events; rarer ones map to row 0.

        Raises SchemaError if no item is left.
        """
        counts = events.frame[ITEM].value_counts(sort=False)
        counts = counts[counts >= min_count].sort_index()
        if counts.empty:
            raise SchemaError(f"no item has items.min_count = {min_count} events or more; lower it")
        types = sorted(events.frame[EVENT_TYPE].unique()) if EVENT_TYPE in events.frame else []
        return cls(_plain(counts.index.to_numpy()), counts.to_numpy(np.int64), tuple(types))

    @cached_property
    def arrow_ids(self) -> pa.Array:
        """The ``item_ids`` for a table; made once, since a catalogue of text takes a while."""
        return pa.array(self.item_ids)

    def recounted(self, item_rows: np.ndarray) -> Vocabulary:
        """Return the same items, counted in ``item_rows`` (int64, a training part) instead."""
        return replace(self, item_counts=np.bincount(item_rows, minlength=self.n_items + 1)[1:])

    @property
    def n_items(self) -> int:
        """The number of items, V; the out-of-vocabulary row is not counted."""
        return len(self.item_ids)

    @cached_property
    def _item_index(self) -> pd.Index:
        index: pd.Index = pd.Index(self.item_ids)
        return index

    @cached_property
    def _event_type_index(self) -> pd.Index:
        index: pd.Index = pd.Index(list(self.event_types), dtype="str")
        return index

    @cached_property
    def _can_be_bisected(self) -> bool:
        """Whether the ids are integers in ascending order; in a delta version new items stand behind all others."""
        integers = np.issubdtype(self.item_ids.dtype, np.integer)
        return integers and bool((self.item_ids[1:] > self.item_ids[:-1]).all())

    def item_rows(self, item_ids: np.ndarray | pd.Series | Sequence[object]) -> np.ndarray:
        """Return int64 rows, 0 for an unknown id. Raises SchemaError for ids of another kind."""
        ids = pd.Index(item_ids)
        require_kind(ids, self.item_ids, "item ids")
        if self.n_items > SEARCHED and self._can_be_bisected:
            return self._searched_rows(ids.to_numpy())
        return np.asarray(self._item_index.get_indexer(ids) + 1, dtype=np.int64)

    def _searched_rows(self, ids: np.ndarray) -> np.ndarray:
        """Look up ``item_rows`` without a hash table, which would take more memory than many millions of ids."""
        first, last = int(self.item_ids[0]), int(self.item_ids[-1])
        if last - first + 1 == self.n_items:  # numbered without a gap
            return np.where((ids >= first) & (ids <= last), ids - first + 1, 0).astype(np.int64)
        places = np.searchsorted(self.item_ids, ids).clip(max=self.n_items - 1)
        return np.where(self.item_ids[places] == ids, places + 1, 0).astype(np.int64)

    def event_type_rows(self, event_types: np.ndarray | pd.Series | Sequence[str]) -> np.ndarray:
        """Return int64 rows, 0 for an unknown event type."""
        return np.asarray(self._event_type_index.get_indexer(pd.Index(event_types)) + 1, dtype=np.int64)

    def save(self, path: Path) -> None:
        """Write Parquet: item_id, count; the event types stand in the schema's metadata."""
        table = pa.table({ITEM: pa.array(self.item_ids), "count": self.item_counts})
        metadata = {"bseq.event_types": json.dumps(self.event_types)}
        pq.write_table(table.replace_schema_metadata(metadata), path)

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        """Read what ``save`` wrote."""
        table = pq.read_table(path)
        types = json.loads((table.schema.metadata or {}).get(b"bseq.event_types", b"[]"))
        ids = table[ITEM].to_pandas().to_numpy()
        return cls(_plain(ids), table["count"].to_numpy(), tuple(types))


def _plain(ids: np.ndarray) -> np.ndarray:
    return ids.astype(np.int64) if np.issubdtype(np.asarray(ids).dtype, np.integer) else np.asarray(ids, dtype=object)
