"""Choose blend weights on held-out events, by scoring what the retriever would serve.

Shape letters: U users, C candidates of the user with the most, P (user, item) pairs that can be among the best.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from bseq_plugin.data.splits import EvaluationSet
from bseq_plugin.metrics import ranking_metrics, top_k_items
from bseq_plugin.model.interest_model import InterestModel
from bseq_plugin.retrieval.blend import BlendWeights, blend_scores, history_scores

# Days; a habit fades over months, what was bought just now counts for weeks.
HALF_LIVES, RECENT_HALF_LIVES = (60.0, 120.0, 180.0, 365.0), (7.0, 15.0, 30.0)
# In units of the spread of a user's interest scores, so that the same grid serves scores of any scale.
HISTORY_WEIGHTS, RECENT_WEIGHTS = (0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0), (0.5, 1.0, 2.0, 4.0, 6.0)
PAIRS_PER_BLOCK = 1 << 16


@dataclass(frozen=True)
class BlendFit:
    """The chosen weights, the NDCG they reached, and every combination tried with its own, in the order tried."""

    weights: BlendWeights
    metric: float
    tried: tuple[tuple[BlendWeights, float], ...]


def fit_blend(model: InterestModel, evaluation: EvaluationSet, at_us: int | None, k: int = 20) -> BlendFit:
    """The weights of largest NDCG@k on all items, the first of equals; the interest weighs 1.

    First the history with one half life over the whole grid; then, around the best of it, the recent part too.

    Args:
        evaluation: held-out events with the items of the history kept as targets.
        at_us: where the held-out events begin (microseconds, UTC); ages are counted from there.
    """
    search = _Search(model, evaluation, at_us, k)
    unit = search.spread
    first = search.run(
        BlendWeights(1.0, weight * unit, half_life)
        for half_life, weight in itertools.product(HALF_LIVES, HISTORY_WEIGHTS)
    )
    best = max(first, key=lambda row: row[1])[0]
    second = search.run(
        replace(
            best, history=best.history * share, half_life_days=long, recent=recent * unit, recent_half_life_days=short
        )
        for share, long, recent, short in itertools.product(
            (0.5, 0.75, 1.0), HALF_LIVES[1:], RECENT_WEIGHTS, RECENT_HALF_LIVES
        )
    )
    weights, metric = max([*first, *second], key=lambda row: row[1])
    return BlendFit(weights, metric, (*first, *second))


class _Search:
    """Scores of all pairs, made once; a combination of weights is then a sum and a top-k."""

    def __init__(self, model: InterestModel, evaluation: EvaluationSet, at_us: int | None, k: int) -> None:
        self.evaluation, self.at_us, self.k = evaluation, at_us, k
        self.n_rows, self.n_users = model.vocabulary.n_items + 1, evaluation.n_users
        interests_UKD, items_VD = model.encode(evaluation.histories), model.item_vectors_VD
        self.keys_P = self._keys(top_k_items(interests_UKD, items_VD, k))
        self.users_P = torch.from_numpy(self.keys_P // self.n_rows)
        self.interest_P = self._interest(interests_UKD, items_VD)
        self._history: dict[float, Tensor] = {}

    @property
    def spread(self) -> float:
        """Standard deviation of the interest scores of the pairs."""
        return float(self.interest_P.std())

    def run(self, combinations: Iterable[BlendWeights]) -> list[tuple[BlendWeights, float]]:
        """NDCG@k of each combination."""
        return [(weights, self._ndcg(weights)) for weights in combinations]

    def _ndcg(self, weights: BlendWeights) -> float:
        history_P, recent_P = self._past(weights.half_life_days), self._past(weights.recent_half_life_days)
        scores_UC = torch.full((self.n_users, self._widest), -torch.inf)
        scores_UC[self.users_P, self._place_P] = blend_scores(self.interest_P, history_P, weights, recent_P)
        best_Uk = scores_UC.topk(self.k, dim=1).indices
        targets = self.evaluation.target_offsets, self.evaluation.target_items
        metrics = ranking_metrics(self._items_UC.gather(1, best_Uk).numpy(), *targets, [self.k])
        return float(metrics[f"ndcg@{self.k}"].mean())

    def _past(self, half_life_days: float) -> Tensor:
        """float32 [P], 0 for an item that is not in the history."""
        if half_life_days not in self._history:
            past = history_scores(self.evaluation.histories, self.at_us, half_life_days)
            scores_P = np.zeros(len(self.keys_P), np.float32)
            scores_P[np.searchsorted(self.keys_P, past.users_P * self.n_rows + past.items_P)] = past.scores_P
            self._history[half_life_days] = torch.from_numpy(scores_P)
        return self._history[half_life_days]

    @cached_property
    def _place_P(self) -> Tensor:
        """Column of each pair among its user's."""
        starts_U = torch.searchsorted(self.users_P, torch.arange(self.n_users))
        return torch.arange(len(self.users_P)) - starts_U[self.users_P]

    @cached_property
    def _widest(self) -> int:
        return max(self.k, int(self._place_P.max()) + 1)

    @cached_property
    def _items_UC(self) -> Tensor:
        items_UC = torch.full((self.n_users, self._widest), -1)
        items_UC[self.users_P, self._place_P] = torch.from_numpy(self.keys_P % self.n_rows)
        return items_UC

    def _keys(self, top_UK: np.ndarray) -> np.ndarray:
        """user * n_rows + item, ascending: the top k by interest and the history. Nothing else can enter a top k."""
        histories = self.evaluation.histories
        known = histories.items > 0
        own = histories.user_index[known] * self.n_rows + histories.items[known]
        found = np.repeat(np.arange(self.n_users), self.k) * self.n_rows + top_UK.ravel()
        return np.unique(np.concatenate([found[top_UK.ravel() > 0], own]))

    def _interest(self, interests_UKD: Tensor, items_VD: Tensor) -> Tensor:
        """float32 [P]: an item's score is its largest over the user's interests."""
        rows_P = torch.from_numpy(self.keys_P % self.n_rows)
        scores = []
        for start in range(0, len(rows_P), PAIRS_PER_BLOCK):
            block = slice(start, start + PAIRS_PER_BLOCK)
            pairs_PK = torch.einsum("pkd,pd->pk", interests_UKD[self.users_P[block]], items_VD[rows_P[block]])
            scores.append(pairs_PK.amax(1))
        return torch.cat(scores)
