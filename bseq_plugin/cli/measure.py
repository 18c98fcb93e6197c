"""Evaluation of a run, shared by ``evaluate`` and ``benchmark``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from bseq_plugin.data.events import instant_us
from bseq_plugin.data.prepare import evaluation_set
from bseq_plugin.data.sequences import Sequences
from bseq_plugin.data.splits import training_part
from bseq_plugin.errors import UsageError
from bseq_plugin.evaluation.blended import AveragedScorer, best_weight, blended_ranker
from bseq_plugin.evaluation.defaults import default_floors, default_graph, fitted_rankers
from bseq_plugin.evaluation.rankers import InterestScorer, Ranker, interest_ranker
from bseq_plugin.evaluation.report import MODEL, Comparison, compare
from bseq_plugin.model.interest_model import InterestModel
from bseq_plugin.schema.recipe import Recipe
from bseq_plugin.training.run import Run

Part = Literal["test", "validation"]


def scorer_of(paths: Sequence[Path]) -> InterestScorer:
    """The model of a run, or the average of those of several runs that differ by their seed."""
    models = [InterestModel.from_run(path) for path in paths]
    return models[0] if len(models) == 1 else AveragedScorer(models)


def blend_with_transitions(scorer: InterestScorer, path: Path, k: int) -> tuple[float, Ranker]:
    """(weight, ranker) of interests blended with the item-transition graph; weight from the validation part.

    The graph is fitted on the training part of the run at ``path``; ``k`` is the cut-off of the NDCG that decides.
    """
    run = Run(path)
    sequences = run.sequences()
    training = _known_before(sequences, run.recipe, "validation")
    graph = default_graph(training, _cut_us(run.recipe, "validation"))
    graph.fit(training, scorer.item_vectors_VD.shape[0] - 1)
    validation = evaluation_set(sequences, run.recipe, "validation")
    weight, _ = best_weight(scorer, graph, validation, k, run.recipe.mask_seen)
    return weight, blended_ranker(scorer, graph, weight)


def evaluate_run(
    path: Path, split: str, ks: Sequence[int], floors: bool = True, others: Mapping[str, Ranker] | None = None
) -> tuple[Comparison, dict[str, Any]]:
    """(comparison, JSON-ready figures) of a finished run, and of ``others`` made from it, on its held-out part.

    Floors see what the model may see: with a time split everything before the cut, else the training part.
    """
    if split not in ("test", "validation"):
        raise UsageError(f"--split {split!r}: use test or validation")
    part = cast(Part, split)
    run = Run(path)
    model = InterestModel.from_run(path)
    recipe, sequences = run.recipe, run.sequences()
    held_out = evaluation_set(sequences, recipe, part)
    n_items = model.vocabulary.n_items
    rankers = {}
    if floors:
        cut_us = _cut_us(recipe, part)
        known = _known_before(sequences, recipe, part)
        rankers = fitted_rankers(default_floors(known, cut_us), known, n_items)
    rankers[MODEL] = interest_ranker(model)
    seen: Literal["mask", "keep"] = "mask" if recipe.mask_seen else "keep"
    rankers |= others or {}
    comparison = compare(held_out, rankers, n_items, ks, seen, models=[MODEL, *(others or {})])
    protocol = {"split": recipe.split, "part": split, "seen": seen, "catalogue": n_items, "recipe": recipe.model_dump()}
    return comparison, {"protocol": protocol, **comparison.to_dict()}


def _cut_us(recipe: Recipe, part: Part) -> int | None:
    """Where a time split begins a part, microseconds UTC; None with another split."""
    if recipe.split != "time":
        return None
    return instant_us(recipe.validation_at if part == "validation" else recipe.test_at)


def _known_before(sequences: Sequences, recipe: Recipe, part: Part) -> Sequences:
    """What floors may learn from: everything before the cut of a time split, else what the model was trained on."""
    cut_us = _cut_us(recipe, part)
    return training_part(sequences) if cut_us is None else sequences.between(None, cut_us)
