"""What time, sessions and several interests are worth on a year of grocery purchases.

    make bench-behaviour ARGS="--table cross_session --seeds 0,1,2"     # needs: pip install -e '.[demo]'
    make bench-behaviour ARGS="--table interests --seeds 0,1,2"
    make bench-behaviour ARGS="--table interests --month november"      # where settings are chosen
    make bench-behaviour ARGS='--table cross_session --rows "causal, ids only; hstu, time; cross_session"'
    make bench-behaviour ARGS="--every 8 --epochs 1 --seeds 0"          # to see that it runs

Time split of the demo: trained on purchases before November 2017, the best epoch chosen on November, tested on the 28
days from 1 December with histories up to there. Every row has the demo's recipe (item attributes, popularity columns,
everything bought in 28 days as targets) but for what its name says: the encoder, and what it reads of an event beside
the item. The latest 100 events are read. NDCG@20 and Recall over all products and over those new to the household, 95 %
bootstrap intervals over households of the mean of the seeds; differences are paired. What has been trained is kept in
benchmarks/results/behaviour/, so that an interrupted call goes on. Writes benchmarks/results/behaviour.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from benchmarks import harness
from benchmarks.behaviour.runs import (
    DAYS,
    MONTHS,
    TEST_AT,
    VALIDATION_AT,
    Lists,
    Trainings,
    Values,
    categories_of,
    measured,
)
from benchmarks.behaviour.tables import ANCHOR, BASELINES, BEGUN_AS_A_MEAN, LISTS, TABLES, claims_of
from bseq_plugin import Recipe, Sequences
from bseq_plugin.demo.data import DemoData, load
from bseq_plugin.evaluation.bootstrap import bootstrap_interval
from bseq_plugin.evaluation.rankers import baseline_ranker, default_baselines
from bseq_plugin.events.events import instant_us
from bseq_plugin.events.vocabulary import Vocabulary

note = Console(stderr=True)


def baselines(data: DemoData, recipe: Recipe) -> dict[str, Values]:
    """Return what the baselines of ``BASELINES`` reach, fitted on everything before the test."""
    cut_us = instant_us(TEST_AT)
    vocabulary = Vocabulary.from_events(data.events.before(instant_us(VALIDATION_AT)), recipe.items.min_count)
    log = Sequences.from_events(data.events, vocabulary)
    known, values = log.between(None, cut_us), {}
    for baseline in default_baselines(known, cut_us):
        if baseline.name in BASELINES:
            baseline.fit(known, vocabulary.n_items)
            ranker = baseline_ranker(baseline, vocabulary.n_items)
            values[baseline.name] = measured(ranker, log, categories_of(data, vocabulary.item_ids), TEST_AT)
    return values


def summary(of_seeds: list[Values], others: dict[str, list[Values]]) -> dict[str, Any]:
    """Means over seeds and households with intervals, and paired differences to ``others``, the baseline first."""
    out: dict[str, Any] = {}
    for metric in [name for name in of_seeds[0] if name != "facts"]:
        mean_U = np.mean([values[metric] for values in of_seeds], axis=0)
        low, high = bootstrap_interval(mean_U)
        out[metric] = {"mean": float(mean_U.mean()), "low": low, "high": high, "over": {}}
        out[metric]["seeds"] = [float(values[metric].mean()) for values in of_seeds]
        for name, other in others.items():
            base_U = np.mean([values[metric] for values in other], axis=0)
            low, high = bootstrap_interval(mean_U - base_U)
            difference = {"mean": float((mean_U - base_U).mean()), "low": low, "high": high}
            out[metric]["over"][name] = difference
            out[metric].setdefault("difference", difference)
    if "facts" in of_seeds[0]:
        out["runs"] = [json.loads(str(values["facts"])) for values in of_seeds]
    return out


def with_settings(recipe: Recipe, settings: dict[str, Any]) -> Recipe:
    """Return the recipe with settings by dotted key."""
    return recipe.with_settings(f"{key}={json.dumps(value)}" for key, value in settings.items())


def main() -> int:
    """Trains what is missing, prints the tables, writes the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", choices=sorted(TABLES), action="append", help="default: all")
    parser.add_argument("--rows", default="", help="only the rows of these names, with semicolons between them")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--month", choices=sorted(MONTHS), default="december",
                        help="november: where settings are chosen; nothing is written")  # fmt: skip
    parser.add_argument("--every", type=int, default=1, help="every n-th household")
    parser.add_argument("--threads", type=int, default=0)
    chosen = parser.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    data = load("completejourney", chosen.every)
    seeds = [int(seed) for seed in chosen.seeds.split(",")]
    base = Recipe.load("completejourney").replace(
        encoder={"name": "causal", "max_length": 100},
        split={
            "kind": "time",
            "validation_at": VALIDATION_AT,
            "test_at": TEST_AT,
            "horizon_days": DAYS,
            "patience": chosen.epochs,
        },
        training={"epochs": chosen.epochs},
    )
    figures: dict[str, Any] = harness.last("behaviour")["figures"]
    words = [word.strip() for word in chosen.rows.split(";") if word.strip()]
    for table in chosen.table or sorted(TABLES):
        names = [name for name in TABLES[table] if not words or name in words]
        trainings = Trainings(data, harness.RESULTS / "behaviour", chosen.every, chosen.month)
        jobs = [(name, seed) for seed in seeds for name in names]
        values: dict[str, list[Values]] = {name: [] for name in names}
        for name, seed in track(jobs, description=table, console=note):
            settings = dict(TABLES[table][name])
            lists = Lists(**{key: settings.pop(key) for key in LISTS if key in settings})
            values[name].append(trainings.values(with_settings(base, {**settings, "training.seed": seed}), lists))
        bases = (next(iter(TABLES[table])), BEGUN_AS_A_MEAN, ANCHOR)
        others = {name: values[name] for name in bases if name in values}
        rows = {name: summary(of_seeds, others) for name, of_seeds in values.items()}
        if not words and chosen.month == "december":
            rows |= {name: summary([of_users], others) for name, of_users in baselines(data, base).items()}
        figures[table] = {"seeds": seeds, "epochs": chosen.epochs, "every": chosen.every, "rows": rows}
        show(table, rows)
    if chosen.month != "december":
        return 0
    note.print(f"written: {harness.write('behaviour', figures, claims_of(figures))}")
    return 0


def show(table: str, rows: dict[str, Any]) -> None:
    """A line a row."""
    columns = ("all ndcg@20", "all recall@20", "all categories@20", "new ndcg@20", "new recall@20", "new categories@20")
    print(f"\n{table}\n{'':<34}" + "".join(f"{column:>28}" for column in columns))
    for name, row in rows.items():
        cells = [f"{row[c]['mean']:.4f} ({row[c]['low']:.4f} to {row[c]['high']:.4f})" for c in columns]
        print(f"{name:<34}" + "".join(f"{cell:>28}" for cell in cells))
        for other in row[columns[0]]["over"]:
            over = [row[c]["over"][other] for c in columns]
            cells = [f"{d['mean']:+.4f} ({d['low']:+.4f} to {d['high']:+.4f})" for d in over]
            print(f"{'  over ' + other:<34.34}" + "".join(f"{cell:>28}" for cell in cells))


if __name__ == "__main__":
    sys.exit(main())
