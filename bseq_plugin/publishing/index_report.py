"""The truth about an index: for a store, what each kind finds of the exact answer, how quickly, and what that costs.

Queries are interests of the store's users, not item vectors: these lie elsewhere, and an index that is tuned on them
looks better than it is. Shape letters: U users, Q queries, V items, D width, K interests, k hits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from bseq_plugin.errors import UsageError
from bseq_plugin.events.events import Events
from bseq_plugin.events.sequences import Sequences
from bseq_plugin.metrics import ranking_metrics
from bseq_plugin.publishing.measure import DEFAULT_KINDS, Measured, measured_kinds, spread_queries, true_rows
from bseq_plugin.schema.indexes import VectorIndex
from bseq_plugin.serving.hits import ExcludedPairs
from bseq_plugin.serving.search import search_items
from bseq_plugin.serving.served import Served
from bseq_plugin.store.store import Store

MAX_TASK_USERS = 2_000


@dataclass(frozen=True)
class IndexReport:
    """What was measured of one version; ``skipped``: kinds that can't be built here, with the reason."""

    version: str
    n_items: int
    dim: int
    n_queries: int
    k: int
    n_task_users: int
    rows: tuple[Measured, ...]
    skipped: tuple[str, ...]

    def best(self, recall: float) -> Measured | None:
        """Return the quickest row for one query that reaches this recall."""
        enough = [row for row in self.rows if row.recall >= recall]
        return min(enough, key=lambda row: row.latency_ms["1"]["p50"], default=None)

    def as_json(self) -> dict[str, Any]:
        """Return the report as plain JSON."""
        return asdict(self)


def index_report(
    store: Store | str | Path,
    test: Events | None = None,
    *,
    k: int = 100,
    task_k: int = 20,
    n_queries: int = 1_000,
    kinds: Iterable[tuple[str, Mapping[str, Any]]] = DEFAULT_KINDS,
    progress: Callable[[str], None] = lambda _: None,
) -> IndexReport:
    """Measure each kind at each of its efforts on the store's current version.

    Args:
        test: events after those of the store; what is lost of the end task is measured on their new items.
        progress: called with the name of each kind before it is built.

    Raises:
        UsageError: k below 1, a store without a user who has events, a test log without a new item of a known user.
        StoreError: the store has no intact version.
    """
    if min(k, task_k, n_queries) < 1:
        raise UsageError(f"k = {k}, task_k = {task_k}, n_queries = {n_queries}; give 1 or more")
    opened = store if isinstance(store, Store) else Store(store)
    served = opened.load(lambda version: Served.load(version, "exact"))
    vectors_VD, histories = served.model.item_vectors_VD[1:], served.histories
    if not histories.n_events:
        raise UsageError("no user of the store has an event, so there are no interests to ask with")
    queries_QD = spread_queries(served.model.encode(histories), histories.lengths, n_queries)
    true_Qk = true_rows(vectors_VD, queries_QD, k)
    task = None if test is None else _Task.of(served, test, task_k)
    rows: list[Measured] = []
    skipped: list[str] = []
    for index, row in measured_kinds(kinds, vectors_VD, queries_QD, true_Qk, skipped, progress):
        rows.append(row if task is None else replace(row, task=task.metrics(index)))
    n_users = 0 if task is None else len(task.interests_UKD)
    n_items, dim = vectors_VD.shape
    return IndexReport(
        served.version.name, n_items, dim, len(queries_QD), true_Qk.shape[1], n_users, tuple(rows), tuple(skipped)
    )


@dataclass(frozen=True)
class _Task:
    """Users of the store with new items in a later log, and how well exact search does for them."""

    served: Served
    interests_UKD: Tensor
    seen: ExcludedPairs
    offsets_U1: np.ndarray
    targets_N: np.ndarray  # vocabulary rows
    k: int

    @classmethod
    def of(cls, served: Served, test: Events, k: int) -> _Task:
        later = Sequences.from_events(test, served.model.vocabulary)
        if served.watermark_us is not None and later.timestamps is not None:
            later = later.between(served.watermark_us + 1, None)
        places = served.users.get_indexer(pd.Index(later.user_ids))
        later = later.take(np.flatnonzero((places >= 0) & (later.lengths > 0))).known()
        histories = served.histories.take(served.users.get_indexer(pd.Index(later.user_ids)))
        n_items = served.model.vocabulary.n_items
        known = histories.known()
        seen = np.unique(known.user_index * n_items + known.items - 1)
        targets = np.setdiff1d(later.user_index * n_items + later.items - 1, seen)  # distinct, ascending by user
        users = np.unique(targets // n_items)[:MAX_TASK_USERS]
        if not len(users):
            raise UsageError(
                "the test log has no new item of a user of the store, later than its newest event: nothing to measure"
            )
        chosen = histories.take(users)
        targets = targets[np.isin(targets // n_items, users)]
        offsets = np.searchsorted(targets // n_items, [*users, users[-1] + 1])
        own = chosen.known()
        excluded = ExcludedPairs.of(own.user_index, own.items - 1, len(users), n_items)
        return cls(served, served.model.encode(chosen), excluded, offsets, targets % n_items + 1, min(k, n_items))

    def metrics(self, index: VectorIndex) -> dict[str, float]:
        """Return the mean recall@k and ndcg@k of an index, and what is lost against exact search."""
        own, true = self._of(index), self._of(self.served.oracle)
        return own | {f"{name} lost": true[name] - own[name] for name in own}

    def _of(self, index: VectorIndex) -> dict[str, float]:
        hits = search_items(index, self.served.oracle, self.interests_UKD, self.k, self.seen)
        top_Uk = np.full((len(self.interests_UKD), self.k), -1, np.int64)
        top_Uk[hits.users_N, hits.ranks() - 1] = hits.rows_N + 1
        values = ranking_metrics(top_Uk, self.offsets_U1, self.targets_N, [self.k])
        return {name: float(values[f"{name}@{self.k}"].mean()) for name in ("recall", "ndcg")}
