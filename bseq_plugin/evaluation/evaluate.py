"""Evaluation of a run, shared by ``evaluate`` and ``benchmark``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch

from bseq_plugin.data.events import Events, instant_us
from bseq_plugin.data.items import PopularityPrior
from bseq_plugin.data.prepare import evaluation_set
from bseq_plugin.data.run import Run
from bseq_plugin.data.sequences import Sequences
from bseq_plugin.data.splits import EvaluationSet, training_part
from bseq_plugin.errors import UsageError
from bseq_plugin.evaluation.blended import AveragedScorer, best_weight
from bseq_plugin.evaluation.defaults import default_baselines, default_graph, fitted_rankers
from bseq_plugin.evaluation.neighbour_baselines import TransitionGraph
from bseq_plugin.evaluation.rankers import InterestScorer, Ranker, interest_ranker
from bseq_plugin.evaluation.report import MODEL, Comparison, compare
from bseq_plugin.model.interest_model import InterestModel
from bseq_plugin.schema.recipe import Recipe

Part = Literal["test", "validation"]


def scorer_of(paths: Sequence[Path]) -> InterestScorer:
    """The model of a run, or the average of those of several runs that differ by their seed."""
    models = [InterestModel.from_run(path) for path in paths]
    return models[0] if len(models) == 1 else AveragedScorer(models)


@dataclass(frozen=True)
class HeldOut:
    """What a model is measured on.

    Attributes:
        evaluation: histories and what came after them, in rows of the model's vocabulary.
        known: what baselines may learn from: all before the cut of a time split, else what the model was trained on.
        cut_us: where a time split begins the part, microseconds UTC; None with another split.
        protocol: split, part, whether seen items are masked, size of the catalogue and recipe, JSON-ready.
    """

    evaluation: EvaluationSet
    known: Sequences
    cut_us: int | None
    protocol: dict[str, Any]

    @classmethod
    def of_run(cls, path: Path, part: Part) -> HeldOut:
        """The held-out part of a finished run."""
        run = Run(path)
        return cls._held_out(run.sequences(), run.recipe, part, run.vocabulary().n_items)

    @classmethod
    def after(cls, events: Events, selection: Path, final: Path) -> HeldOut:
        """The test of ``selection``'s time split, for the run ``final`` that was trained on all that lies before it."""
        vocabulary = Run(final).vocabulary()
        sequences = Sequences.from_events(events, vocabulary)
        return cls._held_out(sequences, Run(selection).recipe, "test", vocabulary.n_items)

    @classmethod
    def _held_out(cls, sequences: Sequences, recipe: Recipe, part: Part, n_items: int) -> HeldOut:
        cut_us = _cut_us(recipe, part)
        known = training_part(sequences) if cut_us is None else sequences.between(None, cut_us)
        seen = "mask" if recipe.mask_seen else "keep"
        protocol = {
            "split": recipe.split, "part": part, "seen": seen, "catalogue": n_items, "recipe": recipe.model_dump()
        }  # fmt: skip
        return cls(evaluation_set(sequences, recipe, part), known, cut_us, protocol)

    def compare(
        self, scorer: InterestScorer, ks: Sequence[int], baselines: bool, others: Mapping[str, Ranker] | None = None
    ) -> tuple[Comparison, dict[str, Any]]:
        """(comparison, JSON-ready figures) of a model, and of ``others`` made from it."""
        n_items, seen = self.protocol["catalogue"], self.protocol["seen"]
        rankers = fitted_rankers(default_baselines(self.known, self.cut_us), self.known, n_items) if baselines else {}
        rankers |= {MODEL: interest_ranker(scorer), **(others or {})}
        comparison = compare(self.evaluation, rankers, n_items, ks, seen, models=[MODEL, *(others or {})])
        return comparison, {"protocol": self.protocol, **comparison.to_dict()}

    def up_to_date(self, model: InterestModel) -> InterestModel:
        """The model with its popularity columns, if it has any, as of the cut."""
        days = model.recipe.popularity_days
        if not days or self.cut_us is None:
            return model
        popularity = PopularityPrior(self.known, model.vocabulary.n_items, days).at(self.cut_us)
        return replace(model, item_priors_VP=torch.from_numpy(popularity))

    def graph(self) -> TransitionGraph:
        """The item-transition graph of what is known."""
        graph = default_graph(self.known, self.cut_us)
        graph.fit(self.known, self.protocol["catalogue"])
        return graph

    def blend_weight(self, scorer: InterestScorer, k: int) -> float:
        """The graph's weight beside the interests of largest NDCG@k."""
        weight, _ = best_weight(scorer, self.graph(), self.evaluation, k, self.protocol["seen"] == "mask")
        return weight


def evaluate_run(
    path: Path, split: str, ks: Sequence[int], baselines: bool = True
) -> tuple[Comparison, dict[str, Any]]:
    """(comparison, JSON-ready figures) of a finished run on its held-out part.

    Baselines see what the model may see: with a time split everything before the cut, in histories and popularity
    columns, else the training part. The model's weights come from before the validation all the same.
    """
    if split not in ("test", "validation"):
        raise UsageError(f"--split {split!r}: use test or validation")
    model = InterestModel.from_run(path)  # first of all: it says what is wrong with a folder that is no finished run
    held_out = HeldOut.of_run(path, cast(Part, split))
    return held_out.compare(held_out.up_to_date(model), ks, baselines)


def _cut_us(recipe: Recipe, part: Part) -> int | None:
    """Where a time split begins a part, microseconds UTC; None with another split."""
    if recipe.split != "time":
        return None
    return instant_us(recipe.validation_at if part == "validation" else recipe.test_at)
