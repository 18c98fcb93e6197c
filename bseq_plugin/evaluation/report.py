"""Measure models and baselines on the same users, and say what is a difference and what is noise.

Shape letters: U users, K places ranked, N targets, V items.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bseq_plugin.console import StyledText, Table, joined, styled
from bseq_plugin.data.splits import EvaluationSet, Seen
from bseq_plugin.errors import UsageError
from bseq_plugin.evaluation.bootstrap import bootstrap_intervals
from bseq_plugin.evaluation.rankers import Ranker
from bseq_plugin.metrics import item_coverage, ranking_metrics

MODEL, BLEND = "model", "blend"
SHOWN = ("recall", "ndcg")  # in a table 80 columns wide; the figures have the rest


@dataclass(frozen=True)
class Difference:
    """A model minus the best baseline on one metric, with the paired 95 % bootstrap interval of the mean difference."""

    baseline: str
    mean: float
    low: float
    high: float

    @property
    def within_noise(self) -> bool:
        """Return whether the interval contains 0: these users can't tell the two apart."""
        return self.low <= 0.0 <= self.high


@dataclass(frozen=True)
class Comparison:
    """All rankers on one evaluation set.

    Attributes:
        seen: "keep" if items of the history may be recommended, "mask" if not.
        n_users: U.
        n_targets: N.
        ks: cut-offs.
        models: names of the rankers that are not baselines.
        values: ranker -> metric -> float64 [U], see ``ranking_metrics``.
        intervals: ranker -> metric -> (low, high) of the mean, 95 %.
        coverage: ranker -> "coverage@k" -> share of the catalogue.
        differences: model -> metric -> against the baseline that is best on that metric; empty without baselines.
        seconds: ranker -> time it took to rank all users.
    """

    seen: Seen
    n_users: int
    n_targets: int
    ks: tuple[int, ...]
    models: tuple[str, ...]
    values: Mapping[str, Mapping[str, np.ndarray]]
    intervals: Mapping[str, Mapping[str, tuple[float, float]]]
    coverage: Mapping[str, Mapping[str, float]]
    differences: Mapping[str, Mapping[str, Difference]]
    seconds: Mapping[str, float]

    @property
    def baselines(self) -> tuple[str, ...]:
        """Return the names of the rankers that are not models, in the order given."""
        return tuple(name for name in self.values if name not in self.models)

    def mean(self, ranker: str, metric: str) -> float:
        """Return the mean over users of, for example, ``mean("model", "ndcg@20")``."""
        return float(self.values[ranker][metric].mean())

    def figures(self, ranker: str) -> dict[str, Any]:
        """Return, JSON-ready, metrics and coverage by name, "intervals", and for a model "versus_best_baseline"."""
        metrics = self.values[ranker]
        figures: dict[str, Any] = {metric: self.mean(ranker, metric) for metric in metrics}
        figures |= self.coverage[ranker]
        figures["intervals"] = {metric: list(self.intervals[ranker][metric]) for metric in metrics}
        if ranker in self.differences:
            figures["versus_best_baseline"] = {
                metric: {
                    "baseline": d.baseline,
                    "difference": d.mean,
                    "low": d.low,
                    "high": d.high,
                    "within_noise": d.within_noise,
                }
                for metric, d in self.differences[ranker].items()
            }
        return figures

    def to_dict(self) -> dict[str, Any]:
        """Return, JSON-ready: {"seen", "users", "targets", MODEL: figures, "baselines": {NAME: figures}, "seconds"}."""
        head: dict[str, Any] = {"seen": self.seen, "users": self.n_users, "targets": self.n_targets}
        models, baselines = ({name: self.figures(name) for name in names} for names in (self.models, self.baselines))
        return head | models | {"baselines": baselines, "seconds": dict(self.seconds)}

    def table(self, title: str, k: int | None = None) -> Table:
        """Return a table at one cut-off (the largest by default), baselines first, the best of a column in bold.

        After ± stands half of the 95 % interval, and under a model's figure "within noise" where the paired interval
        of model minus best baseline contains 0. Raises UsageError for a ``k`` that was not measured.
        """
        k = max(self.ks) if k is None else k
        if k not in self.ks:
            raise UsageError(f"k = {k} was not measured; use one of {list(self.ks)}")
        metrics = [f"{name}@{k}" for name in SHOWN]
        best = {m: max(self.mean(r, m) for r in self.values) for m in metrics}
        seen = "seen items masked" if self.seen == "mask" else "seen items kept"
        caption = [f"{self.n_users:,} users, {self.n_targets:,} targets, {seen}; 95 % bootstrap intervals over users"]
        caption += [self._verdict(name, f"ndcg@{k}") for name in self.differences]
        table = Table(title=title, caption="\n".join(caption))
        table.column("ranker", whole=True)
        for metric in [*metrics, f"coverage@{k}"]:
            table.column(metric, "right", whole=True)
        last = self.baselines[-1] if self.baselines else None
        for name in (*self.baselines, *self.models):
            cells = [self._cell(name, metric, best[metric]) for metric in metrics]
            table.row(name, *cells, f"{self.coverage[name][f'coverage@{k}']:.3f}", end=name == last)
        return table

    def _cell(self, ranker: str, metric: str, best: float) -> StyledText:
        mean, (low, high) = self.mean(ranker, metric), self.intervals[ranker][metric]
        text = joined(styled(f"{mean:.4f}", "bold" if mean == best else ""), styled(f" ±{(high - low) / 2:.3f}", "dim"))
        difference = self.differences.get(ranker, {}).get(metric)
        noise = bool(difference and difference.within_noise)
        return joined(text, styled("\nwithin noise", "yellow")) if noise else text

    def _verdict(self, model: str, metric: str) -> str:
        d = self.differences[model][metric]
        noise = ": within noise" if d.within_noise else ""
        return f"{metric}: {model} minus {d.baseline} {d.mean:+.4f} ({d.low:+.4f} to {d.high:+.4f}){noise}"


def compare(
    evaluation_set: EvaluationSet,
    rankers: Mapping[str, Ranker],
    n_items: int,
    ks: Sequence[int] = (5, 10, 20),
    seen: Seen = "keep",
    models: Collection[str] = (MODEL,),
    seed: int = 0,
) -> Comparison:
    """Rank once with each ranker and measure all on the same users.

    Args:
        evaluation_set: histories and targets.
        rankers: name -> ranker, baselines and models alike.
        n_items: V, for the coverage.
        ks: cut-offs, 1 or more.
        seen: "keep" or "mask" the items of each history.
        models: which rankers are not baselines; names without a ranker are passed over.
        seed: of the bootstrap.

    Raises:
        UsageError: for a wrong ``seen`` or ``ks``, no ranker, or a ranker that returns another shape than [U, max(ks)].
    """
    if seen not in ("keep", "mask") or not ks or min(ks) < 1 or not rankers:
        raise UsageError(f"seen = {seen!r}, ks = {list(ks)}, {len(rankers)} rankers; seen is 'keep' or 'mask', k >= 1")
    values: dict[str, dict[str, np.ndarray]] = {}
    coverage: dict[str, dict[str, float]] = {}
    seconds: dict[str, float] = {}
    for name, ranker in rankers.items():
        begun = time.perf_counter()
        top_UK = ranker(evaluation_set.histories, max(ks), seen == "mask")
        seconds[name] = time.perf_counter() - begun
        if top_UK.shape != (evaluation_set.n_users, max(ks)):
            raise UsageError(
                f"ranker {name!r} returned {top_UK.shape}, expected {(evaluation_set.n_users, max(ks))}: one row a user"
            )
        values[name] = ranking_metrics(top_UK, evaluation_set.target_offsets, evaluation_set.target_items, ks)
        coverage[name] = {f"coverage@{k}": item_coverage(top_UK, n_items, k) for k in ks}
    present = tuple(name for name in rankers if name in models)
    intervals, differences = _intervals(values, present, seed)
    return Comparison(
        seen, evaluation_set.n_users, evaluation_set.n_targets, tuple(ks), present, values, intervals, coverage,
        differences, seconds,
    )  # fmt: skip


def _intervals(
    values: Mapping[str, Mapping[str, np.ndarray]], models: Sequence[str], seed: int
) -> tuple[dict[str, dict[str, tuple[float, float]]], dict[str, dict[str, Difference]]]:
    """Return the intervals of all means and of all model-minus-best-baseline differences, from one set of resamples."""
    baselines = [name for name in values if name not in models]
    metrics = next(iter(values.values())) if baselines else ()
    best = {metric: max(baselines, key=lambda name: values[name][metric].mean()) for metric in metrics}
    gains = {n: {metric: values[n][metric] - values[base][metric] for metric, base in best.items()} for n in models}
    columns = [values_U for of_ranker in (*values.values(), *gains.values()) for values_U in of_ranker.values()]
    bounds = iter(bootstrap_intervals(np.stack(columns, axis=1), seed=seed).tolist())
    intervals = {name: {metric: tuple(next(bounds)) for metric in values[name]} for name in values}
    differences = {
        name: {m: Difference(best[m], float(gain_U.mean()), *next(bounds)) for m, gain_U in of_model.items()}
        for name, of_model in gains.items()
        if baselines
    }
    return intervals, differences


def metrics_document(
    protocol: Mapping[str, Any], comparisons: Mapping[str, Comparison], seconds: Mapping[str, float]
) -> dict[str, Any]:
    """Return the content of ``metrics.json``; ``comparisons`` are "all" and "new", with the same rankers in each.

    {"protocol": {...}, "model": {"all": {"recall@20": ...}, "new": {...}}, "baselines": {NAME: {"all": ..., "new":
    ...}}, "seconds": {...}}; models beside "model" stand under their own names. The protocol also gets users, targets
    and the treatment of seen items of each comparison.
    """
    first = next(iter(comparisons.values()))

    def figures(names: Sequence[str]) -> dict[str, Any]:
        return {name: {part: c.figures(name) for part, c in comparisons.items()} for name in names}

    measured = {p: {"users": c.n_users, "targets": c.n_targets, "seen": c.seen} for p, c in comparisons.items()}
    document = {"protocol": {**protocol, "evaluated": measured}}
    return document | figures(first.models) | {"baselines": figures(first.baselines), "seconds": dict(seconds)}
