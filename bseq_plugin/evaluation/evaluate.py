"""Evaluation of a run on its held-out events, beside baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bseq_plugin.data.items import PopularityPrior
from bseq_plugin.data.splits import HeldOut, Part
from bseq_plugin.evaluation.picture import draw_comparisons
from bseq_plugin.evaluation.rankers import blend_ranker, default_baselines, fitted_rankers, interest_ranker
from bseq_plugin.evaluation.report import BLEND, MODEL, Comparison, compare
from bseq_plugin.model.interest_model import InterestModel
from bseq_plugin.model.run import Run
from bseq_plugin.serving.blend import Blend

if TYPE_CHECKING:
    from bseq_plugin.console import Table


@dataclass(frozen=True)
class EvaluationReport:
    """What a run reaches on its held-out events, beside the baselines, with 95 % intervals over users.

    Attributes:
        comparison: the figures of each ranker, user by user; the run is called "model", with a blend also "blend".
        protocol: split, part, treatment of seen items, size of the catalogue and recipe, JSON-ready.
    """

    comparison: Comparison
    protocol: Mapping[str, Any]

    def mean(self, metric: str, ranker: str = MODEL) -> float:
        """Return the mean over users of, for example, ``mean("ndcg@20")``, of the model or of a baseline by name."""
        return self.comparison.mean(ranker, metric)

    def table(self, title: str = "", k: int | None = None) -> Table:
        """Return a table at one cut-off, the largest by default. Raises UsageError for one not measured."""
        return self.comparison.table(title, k)

    def to_dict(self) -> dict[str, Any]:
        """Return all figures, JSON-ready: what ``bseq evaluate --json`` writes (docs/formats.md)."""
        return {"protocol": dict(self.protocol), **self.comparison.to_dict()}

    def draw(self, path: str | Path, metric: str | None = None) -> None:
        """Write a picture (PNG): a bar a ranker with its interval, by default of NDCG at the largest cut-off.

        Raises MissingDependencyError if matplotlib is not installed.
        """
        title = f"{self.protocol['part']} of the {self.protocol['split']} split"
        draw_comparisons({title: self.comparison}, metric or f"ndcg@{max(self.comparison.ks)}", path)


def evaluate(
    run: Run | str | Path,
    split: Part = "test",
    ks: Sequence[int] = (10, 20),
    *,
    baselines: bool = True,
    blend: Blend | None = None,
) -> EvaluationReport:
    """Measure a finished run on its held-out part, over the whole catalogue.

    Baselines see what the model may see: with a time split everything before the cut, in histories and popularity
    columns, else the training part. The model's weights come from before the validation all the same.

    Args:
        run: a run, or its folder.
        split: the part to measure on.
        ks: cut-offs, 1 or more.
        baselines: measure those too; without them there is no difference to tell from noise.
        blend: weights that are also measured, by the code that a store serves with.

    Raises:
        RunError: the run is missing or not finished.
        UsageError: another split, or a cut-off below 1.
        SchemaError: the run held nothing out.
    """
    opened = Run.open(run)
    model = opened.model()
    held_out = HeldOut.of(opened.sequences(), opened.recipe.split, split)
    days = model.recipe.popularity_days
    if days and held_out.at_us is not None:  # the columns as of the cut
        popularity = PopularityPrior(held_out.known, model.vocabulary.n_items, days).at(held_out.at_us)
        model = replace(model, item_priors_VP=torch.from_numpy(popularity))
    comparison = measured(model, held_out, ks, baselines, blend)
    protocol = {
        "split": opened.recipe.split.kind, "part": split, "seen": held_out.seen, "catalogue": model.vocabulary.n_items,
        "recipe": opened.recipe.as_dict(),
    }  # fmt: skip
    return EvaluationReport(comparison, protocol)


def measured(
    model: InterestModel, held_out: HeldOut, ks: Sequence[int], baselines: bool = True, blend: Blend | None = None
) -> Comparison:
    """Return the comparison of a model, and of its blend, with the baselines of the log."""
    known, n_items = held_out.known, model.vocabulary.n_items
    rankers = fitted_rankers(default_baselines(known, held_out.at_us), known, n_items) if baselines else {}
    rankers[MODEL] = interest_ranker(model)
    if blend is not None:
        rankers[BLEND] = blend_ranker(model, blend, held_out)
    return compare(held_out.evaluation, rankers, n_items, ks, held_out.seen, models=(MODEL, BLEND))
