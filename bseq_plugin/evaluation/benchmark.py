"""A recipe on a log: trained once per seed and measured on what was held out, over the whole catalogue."""

from __future__ import annotations

import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from bseq_plugin.data.auto_recipe import choose_recipe
from bseq_plugin.data.prepare import prepare
from bseq_plugin.data.splits import HeldOut, evaluation_set
from bseq_plugin.errors import UsageError
from bseq_plugin.evaluation.evaluate import measured
from bseq_plugin.evaluation.report import BLEND, MODEL, Comparison
from bseq_plugin.events.events import ITEM, USER, Events, instant_us
from bseq_plugin.events.sequences import Sequences
from bseq_plugin.model.run import Run
from bseq_plugin.readers.read_events import read_events
from bseq_plugin.recipe.recipe import Recipe
from bseq_plugin.serving.blend import Blend
from bseq_plugin.serving.fit_blend import fit_blend
from bseq_plugin.training.train import train

if TYPE_CHECKING:
    from bseq_plugin.console import Table

Protocol = Literal["leave-one-out", "time"]
KS = (5, 10)
METRICS = ("recall@5", "ndcg@5", "recall@10", "ndcg@10")
BLEND_K = 10


@dataclass(frozen=True)
class SeedResult:
    """What the recipe reaches with one seed.

    Attributes:
        comparison: the model, its blend if there is one, and with the first seed the baselines.
        blend: the weights that the validation chose.
        training: epochs, best epoch, seconds, events a second and memory of the training, JSON-ready.
    """

    seed: int
    comparison: Comparison
    blend: Blend | None
    training: Mapping[str, float]

    def means(self, ranker: str = MODEL) -> dict[str, float]:
        """Return metric -> mean over users, of the model or the blend."""
        return {metric: self.comparison.mean(ranker, metric) for metric in METRICS}

    def to_dict(self) -> dict[str, Any]:
        """Return all figures of the seed, JSON-ready."""
        row = self._figures(MODEL)
        if self.blend is not None:
            row[BLEND] = {"sources": dict(self.blend.sources), **self._figures(BLEND)}
        return row | {"seed": self.seed, **self.training}

    def _figures(self, ranker: str) -> dict[str, Any]:
        intervals = self.comparison.intervals[ranker]
        return {**self.means(ranker), "intervals": {metric: list(intervals[metric]) for metric in METRICS}}


@dataclass(frozen=True)
class BenchmarkReport:
    """What a recipe reaches on a log, beside the baselines, a row a seed and their mean.

    Attributes:
        dataset: name of the source; numbers of users, items and events.
        recipe_name: the recipe that was asked for; ``recipe`` is what it came to, but for the seed.
        settings: ``key=value`` over that recipe.
    """

    dataset: Mapping[str, Any]
    protocol: Protocol
    recipe_name: str
    settings: tuple[str, ...]
    recipe: Recipe
    seeds: tuple[SeedResult, ...]

    def mean(self, ranker: str = MODEL) -> dict[str, float]:
        """Return metric -> mean over the seeds, of the model or of the blend ("blend")."""
        rows = [seed.means(ranker) for seed in self.seeds]
        return {metric: sum(row[metric] for row in rows) / len(rows) for metric in METRICS}

    @property
    def baselines(self) -> dict[str, dict[str, Any]]:
        """Return the figures of each baseline; they do not depend on the seed."""
        first = self.seeds[0].comparison
        return {name: first.figures(name) for name in first.baselines}

    def to_dict(self) -> dict[str, Any]:
        """Return all figures, JSON-ready: what ``bseq benchmark --json`` writes (docs/formats.md)."""
        return {
            "dataset": dict(self.dataset),
            "protocol": self.protocol,
            "recipe": self.recipe_name,
            "settings": list(self.settings),
            "resolved_recipe": self.recipe.as_dict(),
            "seeds": [seed.to_dict() for seed in self.seeds],
            "mean": self.mean(),
            **({"blend_mean": self.mean(BLEND)} if self.seeds[0].blend is not None else {}),
            "baselines": self.baselines,
        }

    def table(self) -> Table:
        """Return a table: the baselines, each seed, and the means in bold."""
        from bseq_plugin.console import Table, styled

        title = f"{self.dataset['source']}, {self.protocol}, recipe {self.recipe_name}, seen items masked"
        table = Table("", *METRICS, title=title)
        for name, figures in self.baselines.items():
            table.row(name, *_cells(figures))
        for row in self.seeds:
            table.row(f"seed {row.seed}", *_cells(row.means()))
            if row.blend is not None:
                weights = ", ".join(f"{name} {weight:.3g}" for name, weight in row.blend.sources.items())
                table.row(f"seed {row.seed}, blend ({weights or 'interest alone'})", *_cells(row.means(BLEND)))
        means = {"mean": MODEL} if self.seeds[0].blend is None else {"mean": MODEL, "mean, blend": BLEND}
        for name, ranker in means.items():
            table.row(*(styled(cell, "bold") for cell in (name, *_cells(self.mean(ranker)))))
        return table


def benchmark(
    events: Events | pd.DataFrame | str | Path,
    recipe: Recipe | str | Path = "auto",
    *,
    seeds: Sequence[int] = (0,),
    protocol: Protocol = "leave-one-out",
    settings: Iterable[str] = (),
    sources: Iterable[str] = (),
    report: Callable[[str], None] = lambda line: None,
    name: str | None = None,
) -> BenchmarkReport:
    """Train a recipe once per seed and measure it with seen items masked, beside the baselines.

    The number of epochs comes from the validation. With ``protocol="time"`` the recipe is then trained again on
    everything before the test, which is what the baselines know.

    Args:
        events: a log, or what ``read_events`` reads.
        recipe: a recipe, the name of a shipped one, "auto", or a .toml file.
        seeds: one training for each.
        protocol: "leave-one-out": the last event of each user is the test target; "time": all items of the
            recipe's horizon from its test instant on.
        settings: ``key=value`` over the recipe, as ``--set``.
        sources: candidate sources to blend with, by weights from the validation; the blend is measured by the code that
            a store serves with.
        report: called with a line on what is trained.
        name: what the log is called in the result; default: the name of its file.

    Raises:
        UsageError: an unknown protocol, recipe, setting or source, no seed, or a process of several.
        SchemaError: the split leaves nothing to learn from, to validate with or to test on; nothing was trained.
    """
    if protocol not in ("leave-one-out", "time"):
        raise UsageError(f"protocol = {protocol!r}; use 'leave-one-out' or 'time'")
    if not seeds:
        raise UsageError("no seeds are given; give one or more whole numbers")
    if "WORLD_SIZE" in os.environ:
        raise UsageError("benchmark runs in one process; under torchrun use train and evaluate")
    settings, asked = tuple(settings), tuple(sources)
    source = name or (Path(events).name if isinstance(events, str | Path) else "events")
    log = events if isinstance(events, Events) else read_events(events)
    resolved = choose_recipe(recipe, [*settings, f"split={protocol.replace('-', '_')}"], log)
    resolved = resolved.replace(split={"mask_seen": True})
    called = "given" if isinstance(recipe, Recipe) else str(recipe)
    report(f"{called}: encoder {resolved.encoder.name}, objective {resolved.objective.kind}")
    if protocol == "time":  # nothing to test on is told before hours of training
        made = prepare(log, resolved)
        evaluation_set(made.sequences, made.recipe.split, "test")
    users, items = (int(log.frame[column].nunique()) for column in (USER, ITEM))
    dataset = {"source": source, "users": users, "items": items, "events": len(log)}
    with tempfile.TemporaryDirectory() as folder:
        results = [
            _one_seed(log, resolved.replace(training={"seed": seed}), Path(folder), asked, baselines=not place)
            for place, seed in enumerate(seeds)
        ]
    return BenchmarkReport(dataset, protocol, called, settings, resolved, tuple(results))


def _one_seed(events: Events, recipe: Recipe, folder: Path, sources: Sequence[str], *, baselines: bool) -> SeedResult:
    started = time.perf_counter()
    selection, final = _trained(events, recipe, folder / f"seed-{recipe.training.seed}")
    seconds = time.perf_counter() - started
    blend = fit_blend(selection, sources=sources, k=BLEND_K) if sources else None
    model = final.model()
    sequences = final.sequences() if final == selection else Sequences.from_events(events, model.vocabulary)
    held_out = HeldOut.of(sequences, selection.recipe.split, "test")
    comparison = measured(model, held_out, KS, baselines, blend)
    return SeedResult(recipe.training.seed, comparison, blend, _training(selection, seconds))


def _trained(events: Events, recipe: Recipe, path: Path) -> tuple[Run, Run]:
    """Return the run that was stopped on the validation, and the run to test.

    With a time split the second is trained on everything before the test, for as many epochs as the first was best
    after: the baselines know the time of the validation too.
    """
    selection = train(events, recipe, path)
    split = selection.recipe.split
    if split.kind != "time":
        return selection, selection
    known = events.before(instant_us(split.test_at))
    again = recipe.replace(split="none", training={"stop_after": selection.info["best_epoch"]})
    return selection, train(known, again, path.with_name(f"{path.name}-again"))


def _training(selection: Run, seconds: float) -> dict[str, float]:
    """Return what the training took; ``seconds``: all of it, with preparing, validating and writing."""
    info, epochs = selection.info, selection.epochs()
    return {
        "epochs": info["epochs"],
        "best_epoch": info["best_epoch"],
        "train_seconds": seconds,
        "seconds_per_epoch": statistics.median(epoch["seconds"] for epoch in epochs),
        "events_per_second": statistics.median(epoch["events_per_second"] for epoch in epochs),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _cells(figures: Mapping[str, Any]) -> list[str]:
    return [f"{figures[metric]:.4f}" for metric in METRICS]
