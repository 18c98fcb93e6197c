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
from bseq_plugin.evaluation.baselines import Counted
from bseq_plugin.events.events import DAY_US
from bseq_plugin.events.sequences import Sequences
from bseq_plugin.metrics import MAX_BLOCK_SCORES


@dataclass(kw_only=True)
class _Fitted(Counted):
    """What the baselines of this file share: a row of the matrix is what an item or a neighbour votes for."""

    _matrix: Matrix = field(init=False, repr=False)

    def fit(self, training: Sequences, n_items: int) -> None:
        """See ``Baseline.fit``. Raises SchemaError if sessions are needed and the log has none."""
        known = training.known()
        super().fit(known, n_items)
        self._matrix = self._learned(known)

    def scores(self, histories: Sequences) -> Tensor:
        """See ``Baseline.scores``."""
        return self._filled((self._query(histories.known()) @ self._matrix).toarray())

    def _learned(self, training: Sequences) -> Matrix:
        """Return what votes, from events of known items."""
        raise NotImplementedError

    def _query(self, histories: Sequences) -> Matrix:
        """Return [b, items or neighbours], how much each vote counts."""
        raise NotImplementedError


@dataclass
class TransitionGraph(_Fitted):
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
    name: str = "transition_graph"

    def _learned(self, training: Sequences) -> Matrix:
        return sparse.transition_graph(
            training, self._n_items, self.distance_weights, self.backwards, self.popularity_power
        )

    def _query(self, histories: Sequences) -> Matrix:
        return sparse.recent_matrix(histories, self._n_items, self.last, self.decay)

    def scores(self, histories: Sequences) -> Tensor:
        """See ``Baseline.scores``."""
        score_bV = (self._query(histories.known()) @ self._matrix).toarray()
        if self.second_hop:
            score_bV += self.second_hop * (sparse.keep_strongest(score_bV, self.hop_items) @ self._matrix).toarray()
        return self._filled(score_bV)


@dataclass
class BasketCooccurrence(_Fitted):
    """Items that share baskets with the user's items: cosine of the sets of baskets two items are in.

    The query is the whole history, log(1 + decayed count) an item.
    """

    half_life_days: float = 60
    name: str = "basket_cooccurrence"

    def _learned(self, training: Sequences) -> Matrix:
        _require_sessions(training, self.name)
        held = sparse.step_matrix(training, self._n_items)
        baskets = np.maximum(np.asarray(held.sum(axis=0)).ravel(), 1)
        sparse.scale_columns(held, 1 / np.sqrt(baskets))
        shared = held.T.tocsr() @ held
        sparse.drop_diagonal(shared)
        return shared

    def _query(self, histories: Sequences) -> Matrix:
        return sparse.log1p(sparse.history_matrix(histories, self._n_items, self.half_life_days, self._from_us))


@dataclass
class SessionKnn(_Fitted):
    """The ``neighbours`` sessions most like the user's history vote for their items with their similarity.

    Similarity is the cosine of the session's items and log(1 + decayed count) of the history. Sessions of fewer than
    ``min_items`` known items say little and are left out, as are those older than ``days``.
    """

    neighbours: int = 500
    half_life_days: float = 60
    days: float = 90
    min_items: int = 3
    name: str = "session_knn"
    _keys_VN: Matrix = field(init=False, repr=False)

    def _learned(self, training: Sequences) -> Matrix:
        _require_sessions(training, self.name)
        if self._from_us is not None:
            training = training.between(self._from_us - round(self.days * DAY_US), self._from_us)
        held = sparse.step_matrix(training, self._n_items)
        held = held[np.flatnonzero(np.diff(held.indptr) >= self.min_items)]
        self._keys_VN = sparse.unit_rows(held).T.tocsr()
        return held

    def _query(self, histories: Sequences) -> Matrix:
        counts = sparse.history_matrix(histories, self._n_items, self.half_life_days, self._from_us)
        return _nearest(sparse.log1p(counts), self._keys_VN, self.neighbours)


@dataclass
class UserKnn(_Fitted):
    """The ``neighbours`` users most like this one vote for what they had lately; nobody is their own neighbour.

    Similarity is the cosine of log(1 + count) x log(users / users of the item); a neighbour's vote is log(1 + count
    decayed with ``half_life_days``).
    """

    neighbours: int = 100
    half_life_days: float = 30
    name: str = "user_knn"
    _keys_VN: Matrix = field(init=False, repr=False)
    _rarity_V: np.ndarray = field(init=False, repr=False)
    _users: pd.Index = field(init=False, repr=False)

    def _learned(self, training: Sequences) -> Matrix:
        counts = sparse.history_matrix(training, self._n_items)
        having = np.maximum(np.bincount(counts.indices, minlength=self._n_items + 1), 1)
        self._rarity_V = np.log(training.n_users / having)
        self._keys_VN = sparse.unit_rows(self._rare_first(counts)).T.tocsr()
        self._users = pd.Index(training.user_ids)
        return sparse.log1p(sparse.history_matrix(training, self._n_items, self.half_life_days, self._from_us))

    def _query(self, histories: Sequences) -> Matrix:
        query = self._rare_first(sparse.history_matrix(histories, self._n_items))
        return _nearest(query, self._keys_VN, self.neighbours, self._users.get_indexer(pd.Index(histories.user_ids)))

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
