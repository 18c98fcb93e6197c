"""Choose the weights of a blend on held-out events, by scoring what the retriever would serve.

Shape letters: U users, C candidates of the user with the most, P (user, item) pairs that can be among the best.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bseq_plugin.data.splits import HeldOut, Part
from bseq_plugin.errors import UsageError
from bseq_plugin.indexes.exact import ExactIndex
from bseq_plugin.metrics import ranking_metrics, top_k_items
from bseq_plugin.model.interest_model import InterestModel
from bseq_plugin.model.run import Run
from bseq_plugin.schema.sources import CandidateSource, SourceInputs
from bseq_plugin.serving.blend import Blend, blend_scores, history_scores
from bseq_plugin.serving.candidates import interest_scores
from bseq_plugin.serving.hits import ExcludedPairs
from bseq_plugin.serving.sources import SourceScores, ask_sources, fitted_sources, searcher

# Days; a habit fades over months, what was bought just now counts for weeks.
HALF_LIVES, RECENT_HALF_LIVES = (60.0, 120.0, 180.0, 365.0), (7.0, 15.0, 30.0)
# In units of the spread of a user's interest scores, so that the same grid serves scores of any scale.
HISTORY_WEIGHTS, RECENT_WEIGHTS = (0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0), (0.5, 1.0, 2.0, 4.0, 6.0)
SOURCE_WEIGHTS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


def fit_blend(run: Run | str | Path, *, sources: Iterable[str] = (), k: int = 20, split: Part = "validation") -> Blend:
    """Return the blend of largest NDCG@k on a run's held-out events; the interest weighs 1.

    The run's recipe decides what is ranked: with ``mask_seen`` only items new to the user, where the personal history
    has nothing to say and candidate sources alone are weighed; else all items, the history first.

    Args:
        run: a finished run, or its folder.
        sources: names of candidate sources to learn a weight for (see ``bseq plugins``).
        k: the cut-off of the metric.
        split: the held-out part; weights that are then measured on the test have to come from the validation.

    Raises:
        RunError: the run is missing or not finished.
        UsageError: an unknown source, split or k.
        SchemaError: the run held nothing out.
        PluginError: a source failed or gave something unusable.
    """
    opened = Run.open(run)
    held_out = HeldOut.of(opened.sequences(), opened.recipe.split, split)
    return search_blend(opened.model(), held_out, k, sources).blend


@dataclass(frozen=True)
class BlendFit:
    """The chosen blend, the NDCG it reached, and every combination tried with its own, in the order tried."""

    blend: Blend
    metric: float
    tried: tuple[tuple[Blend, float], ...]


def search_blend(model: InterestModel, held_out: HeldOut, k: int = 20, sources: Iterable[str] = ()) -> BlendFit:
    """Return the blend of largest NDCG@k, the first of equals; the interest weighs 1.

    Unless seen items are masked: first the history with one half life over the whole grid; then, around the best of
    it, the recent part too. Then the candidate sources, one after the other, as long as each is better than without it.
    Sources are fitted on what is known before the held-out events. Raises as ``fit_blend``.
    """
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise UsageError(f"k = {k!r}; give a whole number of 1 or more")
    fitted = fitted_sources(sources, held_out.known, model.vocabulary.n_items)
    search = _WeightSearch(model, held_out, k, fitted)
    tried = search.run([Blend()]) if held_out.seen == "mask" else _histories_tried(search)
    blend, metric = max(tried, key=lambda row: row[1])
    for name in fitted:
        weights = [weight * search.spread for weight in SOURCE_WEIGHTS]
        tried += search.run(replace(blend, sources={**blend.sources, name: weight}) for weight in weights)
        blend, metric = max(tried, key=lambda row: row[1])
    return BlendFit(replace(blend, reached={f"ndcg@{k}": metric}), metric, tuple(tried))


def _histories_tried(search: _WeightSearch) -> list[tuple[Blend, float]]:
    """Return all combinations of the two parts of the history, each with its NDCG."""
    unit = search.spread
    first = search.run(
        Blend(1.0, weight * unit, half_life) for half_life, weight in itertools.product(HALF_LIVES, HISTORY_WEIGHTS)
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
    return [*first, *second]


class _WeightSearch:
    """Scores of all pairs, made once; a combination of weights is then a sum and a top-k."""

    def __init__(self, model: InterestModel, held_out: HeldOut, k: int, sources: Mapping[str, CandidateSource]) -> None:
        self.evaluation, self.request_us, self.k = held_out.evaluation, held_out.request_us, k
        self.masks_seen = held_out.seen == "mask"
        self.n_rows, self.n_users = model.vocabulary.n_items + 1, self.evaluation.n_users
        interests_UKD, items_VD = model.encode(self.evaluation.histories), model.item_vectors_VD
        answers = self._ask(sources, interests_UKD, items_VD)
        self.keys_P = self._keys(interests_UKD, items_VD, answers.values())
        self.sources = {name: torch.from_numpy(one.at(self.keys_P)[0]) for name, one in answers.items()}
        users_P, rows_P = np.divmod(self.keys_P, self.n_rows)
        self.users_P = torch.from_numpy(users_P)
        self.interest_P = torch.from_numpy(interest_scores(interests_UKD, items_VD, users_P, rows_P)[0])
        self._history: dict[float, Tensor] = {}
        starts_U = torch.searchsorted(self.users_P, torch.arange(self.n_users))
        self._place_P = torch.arange(len(users_P)) - starts_U[self.users_P]  # the column of each pair among its user's
        self._items_UC = torch.full((self.n_users, max(k, int(self._place_P.max()) + 1)), -1)
        self._items_UC[self.users_P, self._place_P] = torch.from_numpy(rows_P)

    @property
    def spread(self) -> float:
        """Return the standard deviation of the interest scores of the pairs."""
        return float(self.interest_P.std())

    def run(self, combinations: Iterable[Blend]) -> list[tuple[Blend, float]]:
        """Return each combination with its NDCG@k."""
        return [(blend, self._ndcg(blend)) for blend in combinations]

    def _ndcg(self, blend: Blend) -> float:
        history_P, recent_P = self._past(blend.half_life_days), self._past(blend.recent_half_life_days)
        scores_UC = torch.full(self._items_UC.shape, -torch.inf)
        scores_UC[self.users_P, self._place_P] = blend_scores(self.interest_P, history_P, blend, recent_P, self.sources)
        best_Uk = scores_UC.topk(self.k, dim=1).indices
        targets = self.evaluation.target_offsets, self.evaluation.target_items
        metrics = ranking_metrics(self._items_UC.gather(1, best_Uk).numpy(), *targets, [self.k])
        return float(metrics[f"ndcg@{self.k}"].mean())

    def _past(self, half_life_days: float) -> Tensor:
        """Return float32 [P], 0 for an item that is not in the history, or where seen items are masked."""
        if half_life_days not in self._history:
            scores_P = np.zeros(len(self.keys_P), np.float32)
            if not self.masks_seen:
                past = history_scores(self.evaluation.histories, self.request_us, half_life_days)
                places = np.searchsorted(self.keys_P, past.users_P * self.n_rows + past.items_P)
                scores_P[places] = past.scores_P
            self._history[half_life_days] = torch.from_numpy(scores_P)
        return self._history[half_life_days]

    def _ask(
        self, sources: Mapping[str, CandidateSource], interests_UKD: Tensor, items_VD: Tensor
    ) -> dict[str, SourceScores]:
        """Return what each source gives; keys are user * n_rows + vocabulary row, as everywhere here."""
        if not sources:
            return {}
        n_items = self.n_rows - 1
        histories = self.evaluation.histories.known()
        inputs = SourceInputs(histories, interests_UKD, items_VD, searcher(ExactIndex.build(items_VD[1:]), n_items))
        n_seen = histories.n_events if self.masks_seen else 0
        excluded = ExcludedPairs.of(histories.user_index[:n_seen], histories.items[:n_seen] - 1, self.n_users, n_items)
        answers = ask_sources(sources, inputs, self.k, excluded, None)
        return {
            name: SourceScores(one.keys_N // n_items * self.n_rows + one.keys_N % n_items + 1, one.scores_N)
            for name, one in answers.items()
        }

    def _keys(self, interests_UKD: Tensor, items_VD: Tensor, answers: Iterable[SourceScores]) -> np.ndarray:
        """Return user * n_rows + item, ascending: the top k by interest, the history, and what sources give.

        Nothing else can enter a top k.
        """
        histories = self.evaluation.histories
        excluded = (histories.offsets, histories.items) if self.masks_seen else None
        top_N = top_k_items(interests_UKD, items_VD, self.k, excluded).ravel()
        best = np.repeat(np.arange(self.n_users), self.k) * self.n_rows + top_N
        known = histories.known()
        own = (known.user_index * self.n_rows + known.items)[: 0 if self.masks_seen else None]
        return np.unique(np.concatenate([best[top_N > 0], own, *(one.keys_N for one in answers)]))
