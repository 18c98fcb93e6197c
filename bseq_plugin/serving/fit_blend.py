"""Choose blend weights on held-out events, by scoring what the retriever would serve.

Shape letters: U users, C candidates of the user with the most, P (user, item) pairs that can be among the best.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from bseq_plugin.data.sequences import Sequences
from bseq_plugin.data.splits import EvaluationSet
from bseq_plugin.indexes.exact import ExactIndex
from bseq_plugin.metrics import ranking_metrics, top_k_items
from bseq_plugin.model.interest_model import InterestModel
from bseq_plugin.schema.sources import CandidateSource, SourceInputs
from bseq_plugin.serving.blend import BlendWeights, blend_scores, history_scores
from bseq_plugin.serving.hits import ExcludedPairs
from bseq_plugin.serving.sources import Found, ask_sources, fitted_sources, searcher

# Days; a habit fades over months, what was bought just now counts for weeks.
HALF_LIVES, RECENT_HALF_LIVES = (60.0, 120.0, 180.0, 365.0), (7.0, 15.0, 30.0)
# In units of the spread of a user's interest scores, so that the same grid serves scores of any scale.
HISTORY_WEIGHTS, RECENT_WEIGHTS = (0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0), (0.5, 1.0, 2.0, 4.0, 6.0)
SOURCE_WEIGHTS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
PAIRS_PER_BLOCK = 1 << 16


@dataclass(frozen=True)
class BlendFit:
    """The chosen weights, the NDCG they reached, and every combination tried with its own, in the order tried."""

    weights: BlendWeights
    metric: float
    tried: tuple[tuple[BlendWeights, float], ...]


def fit_blend(
    model: InterestModel,
    evaluation: EvaluationSet,
    at_us: int | None,
    k: int = 20,
    sources: Iterable[str] = (),
    log: Sequences | None = None,
) -> BlendFit:
    """The weights of largest NDCG@k on all items, the first of equals; the interest weighs 1.

    First the history with one half life over the whole grid; then, around the best of it, the recent part too;
    then the candidate sources, one after the other, as long as each is better than without it.

    Args:
        evaluation: held-out events with the items of the history kept as targets.
        at_us: where the held-out events begin (microseconds, UTC); ages are counted from there.
        sources: names of candidate sources to learn a weight for.
        log: histories that the sources are fitted on, nothing held out among them; default: those of ``evaluation``.

    Raises:
        UsageError: an unknown source.
        PluginError: a source failed or gave something unusable.
    """
    fitted = fitted_sources(sources, log or evaluation.histories, model.vocabulary.n_items)
    search = _WeightSearch(model, evaluation, at_us, k, fitted)
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
    tried = [*first, *second]
    weights, metric = max(tried, key=lambda row: row[1])
    for name in fitted:
        tried += search.run(replace(weights, sources={**weights.sources, name: w * unit}) for w in SOURCE_WEIGHTS)
        weights, metric = max(tried, key=lambda row: row[1])
    return BlendFit(weights, metric, tuple(tried))


class _WeightSearch:
    """Scores of all pairs, made once; a combination of weights is then a sum and a top-k."""

    def __init__(
        self,
        model: InterestModel,
        evaluation: EvaluationSet,
        at_us: int | None,
        k: int,
        sources: Mapping[str, CandidateSource],
    ) -> None:
        self.evaluation, self.at_us, self.k = evaluation, at_us, k
        self.n_rows, self.n_users = model.vocabulary.n_items + 1, evaluation.n_users
        interests_UKD, items_VD = model.encode(evaluation.histories), model.item_vectors_VD
        found = self._ask(sources, interests_UKD, items_VD)
        self.keys_P = self._keys(top_k_items(interests_UKD, items_VD, k), found.values())
        self.sources = {name: torch.from_numpy(one.at(self.keys_P)[0]) for name, one in found.items()}
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
        scores_UC[self.users_P, self._place_P] = blend_scores(
            self.interest_P, history_P, weights, recent_P, self.sources
        )
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

    def _ask(self, sources: Mapping[str, CandidateSource], interests_UKD: Tensor, items_VD: Tensor) -> dict[str, Found]:
        """What each source finds; keys are user * n_rows + vocabulary row, as everywhere here."""
        if not sources:
            return {}
        search = searcher(ExactIndex.build(items_VD[1:]), self.n_rows - 1)
        inputs = SourceInputs(self.evaluation.histories.known(), interests_UKD, items_VD, search)
        nothing = np.empty(0, np.int64)
        excluded = ExcludedPairs.of(nothing, nothing, self.n_users, self.n_rows - 1)
        found = ask_sources(sources, inputs, self.k, excluded, None)
        n_items = self.n_rows - 1
        return {
            name: Found(one.keys_N // n_items * self.n_rows + one.keys_N % n_items + 1, one.scores_N)
            for name, one in found.items()
        }

    def _keys(self, top_UK: np.ndarray, sources: Iterable[Found]) -> np.ndarray:
        """user * n_rows + item, ascending: the top k by interest, the history and what sources found. Nothing else can
        enter a top k.
        """
        histories = self.evaluation.histories
        known = histories.items > 0
        own = histories.user_index[known] * self.n_rows + histories.items[known]
        found = np.repeat(np.arange(self.n_users), self.k) * self.n_rows + top_UK.ravel()
        return np.unique(np.concatenate([found[top_UK.ravel() > 0], own, *(one.keys_N for one in sources)]))

    def _interest(self, interests_UKD: Tensor, items_VD: Tensor) -> Tensor:
        """float32 [P]: an item's score is its largest over the user's interests."""
        rows_P = torch.from_numpy(self.keys_P % self.n_rows)
        scores = []
        for start in range(0, len(rows_P), PAIRS_PER_BLOCK):
            block = slice(start, start + PAIRS_PER_BLOCK)
            pairs_PK = torch.einsum("pkd,pd->pk", interests_UKD[self.users_P[block]], items_VD[rows_P[block]])
            scores.append(pairs_PK.amax(1))
        return torch.cat(scores)
