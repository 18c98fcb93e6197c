"""The steps of ``bseq demo``, each a few lines that a user would write herself."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from bseq_plugin.data.splits import EvaluationSet, time_window
from bseq_plugin.demo.data import DemoData
from bseq_plugin.errors import MissingDependencyError, UsageError
from bseq_plugin.evaluation.picture import draw_comparisons
from bseq_plugin.evaluation.rankers import default_baselines, fitted_rankers, interest_ranker, served_ranker
from bseq_plugin.evaluation.report import MODEL, Comparison, compare, metrics_document
from bseq_plugin.events.events import instant_us
from bseq_plugin.events.sequences import Sequences
from bseq_plugin.files import write_json
from bseq_plugin.model.run import Run
from bseq_plugin.publishing.publish import publish
from bseq_plugin.ranking.engine import ranking_features
from bseq_plugin.recipe.recipe import Recipe
from bseq_plugin.serving.blend import FILE as BLEND_FILE
from bseq_plugin.serving.blend import Blend
from bseq_plugin.serving.fit_blend import fit_blend
from bseq_plugin.serving.retriever import Retriever
from bseq_plugin.training.train import train

VALIDATION_AT, TEST_AT, HORIZON_DAYS = "2017-11-01T00:00:00+00:00", "2017-12-01T00:00:00+00:00", 28.0
MARKER = ".bseq-demo"
SERVED = "served"
KS = (5, 10, 20)
N_CANDIDATES = 20


@dataclass
class Demo:
    """One demo run.

    Attributes:
        tell: says to the user what goes on.
        seconds: how long each step took.
    """

    data: DemoData
    recipe: Recipe
    out: Path
    tell: Callable[[str], object]
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str, text: str) -> Iterator[None]:
        """Tell what goes on and how long it took."""
        self.tell(text)
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started

    def choose(self) -> tuple[int, Run]:
        """Train to the end of October, stop on November: the number of epochs and the run they come from."""
        recipe = self.recipe.replace(
            split={"kind": "time", "validation_at": VALIDATION_AT, "test_at": TEST_AT, "horizon_days": HORIZON_DAYS}
        )
        known = self.data.events.before(instant_us(TEST_AT))
        run = train(known, recipe, self._fresh("runs/selection"), items=self.data.items)
        return int(run.info["best_epoch"]), run

    def blend(self, selection: Run) -> Blend:
        """Choose blend weights on November, with the model that has not seen it."""
        return fit_blend(selection, k=max(KS))

    def final(self, epochs: int) -> Run:
        """Train through November with the number of epochs chosen on it."""
        known = self.data.events.before(instant_us(TEST_AT))
        recipe = self.recipe.replace(split="none", training={"stop_after": epochs})
        return train(known, recipe, self._fresh("runs/final"), items=self.data.items)

    def publish(self, run: Run, blend: Blend) -> Retriever:
        """Publish vectors, ids, FAISS index, encoder, histories and blend as one version of a store."""
        store = self._fresh("store")
        blend.save(run.path / BLEND_FILE)  # so that `bseq publish demo/runs/final` takes it along as well
        publish(run, store, index="faiss_cpu", blend=blend)
        return Retriever.open(store)

    def evaluate(self, retriever: Retriever) -> dict[str, Comparison]:
        """Compare on December, looked at once: all items, and items new to the household."""
        at_us = instant_us(TEST_AT)
        model = retriever.model
        log = Sequences.from_events(self.data.events, model.vocabulary)
        december = time_window(log, at_us, HORIZON_DAYS)
        known = log.between(None, at_us)
        n_items = model.vocabulary.n_items
        rankers = fitted_rankers(default_baselines(known, at_us), known, n_items)
        rankers |= {MODEL: interest_ranker(model), SERVED: served_ranker(retriever, TEST_AT)}
        sets: dict[str, EvaluationSet] = {"new": december.new_items_only(), "all": december}
        return {
            name: compare(part, rankers, n_items, KS, "mask" if name == "new" else "keep", (MODEL, SERVED))
            for name, part in sets.items()
        }

    def write_candidates(self, retriever: Retriever) -> pd.DataFrame:
        """Write candidates of every household to Parquet."""
        candidates = retriever.retrieve(retriever.histories, N_CANDIDATES, exclude="none", at=TEST_AT)
        candidates.to_parquet(self.out / "candidates.parquet")
        return candidates

    def write_features(self, retriever: Retriever, candidates: pd.DataFrame) -> None:
        """Write ranking features of the candidates as of the first of December to Parquet."""
        table = ranking_features(candidates, retriever.histories, TEST_AT, model=retriever.model)
        table.to_parquet(self.out / "ranking_features.parquet")

    def write_metrics(self, comparisons: dict[str, Comparison], epochs: int, blend: Blend) -> None:
        """Write ``metrics.json``."""
        chosen = {"epochs": epochs, "blend": {**blend.weights(), **blend.reached}}
        protocol = {
            "data": "completejourney", "split": "time", "validation_at": VALIDATION_AT, "test_at": TEST_AT,
            "horizon_days": HORIZON_DAYS, "recipe": self.recipe.as_dict(), "chosen_on_validation": chosen,
        }  # fmt: skip
        ordered = {name: comparisons[name] for name in ("all", "new")}
        write_json(self.out / "metrics.json", metrics_document(protocol, ordered, self.seconds))

    def draw(self, comparisons: dict[str, Comparison]) -> list[str]:
        """Draw ``comparison.png``; print a note instead where matplotlib is not installed."""
        titles = {"new": "December 2017, products new to the household", "all": "December 2017, all products"}
        try:
            panels = {titles[name]: comparison for name, comparison in comparisons.items()}
            draw_comparisons(panels, "ndcg@20", self.out / "comparison.png")
        except MissingDependencyError as error:
            self.tell(str(error))
            return []
        return ["comparison.png"]

    def _fresh(self, name: str) -> Path:
        """Return the folder of a step, one of an earlier demo removed; ``take_folder`` has made sure of whose it is."""
        path = self.out / name
        shutil.rmtree(path, ignore_errors=True)
        return path


def take_folder(out: Path) -> None:
    """Take a new or empty folder, or that of an earlier demo, which is replaced.

    Raises UsageError for any other folder: nothing of the user's is ever removed.
    """
    marker = out / MARKER
    if out.exists() and not (out.is_dir() and (marker.is_file() or not any(out.iterdir()))):
        raise UsageError(f"--out {str(out)!r} is there and holds no demo; give a new folder")
    out.mkdir(parents=True, exist_ok=True)
    marker.write_text("made by `bseq demo`, which replaces runs/ and store/ here\n", encoding="utf-8")
