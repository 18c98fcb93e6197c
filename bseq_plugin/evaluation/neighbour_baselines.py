"""Baselines made of neighbours: items that follow or accompany each other, sessions and users that resemble each other.

Shape letters: b users of one block, V items (row 0 = unknown), S steps (baskets), N neighbours to choose from.
Source of the graph: the baseline of the Amazon comparisons; of the kNNs: Ludewig & Jannach, UMUAI 2018 (session kNN).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from torch import Tensor

from bseq_plugin.data import sparse
from bseq_plugin.data.sparse import Matrix
from bseq_plugin.errors import SchemaError
from bseq_plugin.evaluation.baselines import Tail
from bseq_plugin.events.events import DAY_US
from bseq_plugin.events.sequences import Sequences
from bseq_plugin.metrics import MAX_BLOCK_SCORES


@dataclass
class _Fitted:
    """What every baseline of this file keeps."""

    n_items: int
    at_us: int | None
    tail: Tail
    matrix: Matrix

    @classmethod
    def on(cls, training: Sequences, n_items: int, at_us: int | None, matrix: Matrix) -> _Fitted:
        return cls(n_items, sparse.counted_from(training, at_us), Tail.fitted(training, n_items, at_us), matrix)


@dataclass
class TransitionGraph:
    """Items reached from a user's last steps over the edges of everybody's history.

    Edges join the items of steps (baskets, else single events: ``sparse.steps``) at distance 1, 2, 3 with weight 1,
    .5, .33; the same backwards times ``backwards``. A row is divided by the root of its sum, a column by
    popularity ** ``popularity_power``. The query is the last ``last`` steps, weighted ``decay ** age``; with
    ``second_hop`` the neighbours of the 10 best items are added with that weight.
    """

    last: int = 10
    decay: float = 0.6
    distance_weights: tuple[float, ...] = (1.0, 0.5, 0.33)
    backwards: float = 0.9
    popularity_power: float = 0.3
    second_hop: float = 0.15
    hop_items: int = 10
    at_us: int | None = None
    name: str = "transition_graph"
    _fitted: _Fitted = field(init=False, repr=False)

    def fit(self, training: Sequences, n_items: int) -> None:
        """See ``Baseline.fit``."""
        graph = sparse.transition_graph(
            training.known(), n_items, self.distance_weights, self.backwards, self.popularity_power
        )
        self._fitted = _Fitted.on(training.known(), n_items, self.at_us, graph)

    def scores(self, histories: Sequences) -> Tensor:
        """See ``Baseline.scores``."""
        fitted = self._fitted
        recent = sparse.recent_matrix(histories.known(), fitted.n_items, self.last, self.decay)
        score_bV = (recent @ fitted.matrix).toarray()
        if self.second_hop:
            score_bV += self.second_hop * (sparse.keep_strongest(score_bV, self.hop_items) @ fitted.matrix).toarray()
        return fitted.tail.fill(score_bV)


@dataclass
class BasketCooccurrence:
    """Items that share baskets with the user's items: cosine of the sets of baskets two items are in.

    The query is the whole history, log(1 + decayed count) an item.
    """

    half_life_days: float = 60
    at_us: int | None = None
    name: str = "basket_cooccurrence"
    _fitted: _Fitted = field(init=False, repr=False)

    def fit(self, training: Sequences, n_items: int) -> None:
        """See ``Baseline.fit``. Raises SchemaError if the log has no sessions."""
        _require_sessions(training, self.name)
        training = training.known()
        held = sparse.step_matrix(training, n_items)
        baskets = np.maximum(np.asarray(held.sum(axis=0)).ravel(), 1)
        sparse.scale_columns(held, 1 / np.sqrt(baskets))
        shared = held.T.tocsr() @ held
        sparse.drop_diagonal(shared)
        self._fitted = _Fitted.on(training, n_items, self.at_us, shared)

    def scores(self, histories: Sequences) -> Tensor:
        """See ``Baseline.scores``."""
        fitted = self._fitted
        query = sparse.history_matrix(histories.known(), fitted.n_items, self.half_life_days, fitted.at_us)
        return fitted.tail.fill((sparse.log1p(query) @ fitted.matrix).toarray())


@dataclass
class SessionKnn:
    """The ``neighbours`` sessions most like the user's history vote for their items with their similarity.

    Similarity is the cosine of the session's items and log(1 + decayed count) of the history. Sessions of fewer than
    ``min_items`` known items say little and are left out, as are those older than ``days``.
    """

    neighbours: int = 500
    half_life_days: float = 60
    days: float = 90
    min_items: int = 3
    at_us: int | None = None
    name: str = "session_knn"
    _fitted: _Fitted = field(init=False, repr=False)
    _keys_VN: Matrix = field(init=False, repr=False)

    def fit(self, training: Sequences, n_items: int) -> None:
        """See ``Baseline.fit``. Raises SchemaError if the log has no sessions."""
        _require_sessions(training, self.name)
        training = training.known()
        at_us = sparse.counted_from(training, self.at_us)
        recent = training if at_us is None else training.between(at_us - round(self.days * DAY_US), at_us)
        held = sparse.step_matrix(recent, n_items)
        held = held[np.flatnonzero(np.diff(held.indptr) >= self.min_items)]
        self._keys_VN = sparse.unit_rows(held).T.tocsr()
        self._fitted = _Fitted.on(training, n_items, self.at_us, held)

    def scores(self, histories: Sequences) -> Tensor:
        """See ``Baseline.scores``."""
        fitted = self._fitted
        query = sparse.history_matrix(histories.known(), fitted.n_items, self.half_life_days, fitted.at_us)
        near = _nearest(sparse.log1p(query), self._keys_VN, self.neighbours)
        return fitted.tail.fill((near @ fitted.matrix).toarray())


@dataclass
class UserKnn:
    """The ``neighbours`` users most like this one vote for what they had lately; nobody is their own neighbour.

    Similarity is the cosine of log(1 + count) x log(users / users of the item); a neighbour's vote is log(1 + count
    decayed with ``half_life_days``).
    """

    neighbours: int = 100
    half_life_days: float = 30
    at_us: int | None = None
    name: str = "user_knn"
    _fitted: _Fitted = field(init=False, repr=False)
    _keys_VN: Matrix = field(init=False, repr=False)
    _rarity_V: np.ndarray = field(init=False, repr=False)
    _users: pd.Index = field(init=False, repr=False)

    def fit(self, training: Sequences, n_items: int) -> None:
        """See ``Baseline.fit``."""
        training = training.known()
        counts = sparse.history_matrix(training, n_items)
        having = np.maximum(np.bincount(counts.indices, minlength=n_items + 1), 1)
        self._rarity_V = np.log(training.n_users / having)
        self._keys_VN = sparse.unit_rows(self._rare_first(counts)).T.tocsr()
        self._users = pd.Index(training.user_ids)
        at_us = sparse.counted_from(training, self.at_us)
        votes = sparse.log1p(sparse.history_matrix(training, n_items, self.half_life_days, at_us))
        self._fitted = _Fitted.on(training, n_items, self.at_us, votes)

    def scores(self, histories: Sequences) -> Tensor:
        """See ``Baseline.scores``."""
        fitted = self._fitted
        query = self._rare_first(sparse.history_matrix(histories.known(), fitted.n_items))
        near = _nearest(query, self._keys_VN, self.neighbours, self._users.get_indexer(pd.Index(histories.user_ids)))
        return fitted.tail.fill((near @ fitted.matrix).toarray())

    def _rare_first(self, counts: Matrix) -> Matrix:
        weights = sparse.log1p(counts)
        sparse.scale_columns(weights, self._rarity_V)
        return weights


def _require_sessions(training: Sequences, name: str) -> None:
    if training.session_ids is None:
        raise SchemaError(f"baseline {name!r} needs session_id in the log; use transition_graph or user_knn instead")


def _nearest(query: Matrix, keys_VN: Matrix, k: int, own_b: np.ndarray | None = None) -> Matrix:
    """Return [b, N], cosines of queries with their k nearest unit-length keys; ``own_b`` [b]: one to skip, or -1."""
    query = sparse.unit_rows(query)
    block = max(1, MAX_BLOCK_SCORES // max(1, keys_VN.shape[1]))
    parts = []
    for start in range(0, max(1, query.shape[0]), block):
        cosine_bN = (query[start : start + block] @ keys_VN).toarray()
        if own_b is not None:
            own = own_b[start : start + block]
            rows = np.flatnonzero(own >= 0)
            cosine_bN[rows, own[rows]] = 0
        parts.append(sparse.keep_strongest(cosine_bN, k))
    return sparse.stack(parts)
