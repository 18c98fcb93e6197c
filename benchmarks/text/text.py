"""Items hidden from training: how well text finds them, what it costs the others, how long texts take to encode.

    make bench-text ARGS="--beauty sequences.txt items.tsv --seeds 0,1,2"     # and the demo's grocery log
    make bench-text ARGS="--only tuning --beauty sequences.txt items.tsv --seeds 0"     # LoRA, last layer, all
    make bench-text ARGS="--only grocery --part validation --set training.epochs=4 --text-set items.prior_events=4"

A tenth of the items (drawn by the seed) is hidden from training; a model of ids alone is trained, and one of ids and
text, with the same settings (one training for both). Both rank the whole catalogue: warm
targets, those of the tail (5 events or fewer in training; and the long tail, the items that are had least and have a
fifth of all events), and cold targets, for which the one has rows as they are
before training and the other what the text says. Settings are chosen with --part validation, which leaves out the
newest events. Writes benchmarks/results/text.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import bseq_transformers
from bseq_transformers.item_tuning import ItemTuningOptions
from bseq_transformers.text import TextItemEncoder, TextOptions

from benchmarks import harness
from benchmarks.text.measure import COUNTED, one_seed
from benchmarks.text.problems import Problem, beauty, grocery
from benchmarks.text.tuning import UNTUNED, tuning
from bseq_plugin import plugin_manager
from bseq_plugin.cli.main import quiet
from bseq_plugin.demo.data import load

MODELS = ("id", COUNTED, "id + text")
SHOWN = ("warm ndcg@10", "tail ndcg@10", "long-tail ndcg@10", "cold recall@10", "cold ndcg@10")


def encoding() -> dict[str, float]:
    """Seconds for the texts of all purchased products, with an empty cache and with a full one."""
    data = load("completejourney")
    bought = data.items[data.items["item_id"].isin(data.events.frame["item_id"].unique())]
    options = TextOptions(columns=("department", "product_category", "name"))
    seconds = []
    before = os.environ.get("BSEQ_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["BSEQ_CACHE"] = folder
        for _ in range(2):
            started = time.perf_counter()
            TextItemEncoder(options).encode(bought, progress=True)
            seconds.append(time.perf_counter() - started)
    os.environ.pop("BSEQ_CACHE")
    if before is not None:
        os.environ["BSEQ_CACHE"] = before
    texts = len(set(TextItemEncoder(options).texts(bought)))
    return {"products": len(bought), "distinct texts": texts, "seconds": seconds[0], "seconds from cache": seconds[1]}


def mean(rows: list[dict[str, Any]], model: str, figure: str) -> float:
    """Over seeds."""
    return statistics.mean(row[model][figure] for row in rows)


def claims(name: str, rows: list[dict[str, Any]], question: str) -> list[harness.Claim]:
    """Return what is claimed of one question to one log."""

    def figure(model: str, what: str) -> float:
        return mean(rows, model, f"{question}{what}")

    cold, by_id = figure("id + text", "cold recall@10"), figure("id", "cold recall@10")
    one_hit = 1 / figure("id", "cold users")  # the least that is not nothing
    drop = 1 - figure("id + text", "warm ndcg@10") / figure("id", "warm ndcg@10")
    values = [
        ("cold recall@10 / a random ranking's", cold / figure("random", "cold recall@10"), 20.0),
        ("cold recall@10 / that of ids alone", cold / max(by_id, one_hit), 3.0),
    ]
    if COUNTED in rows[0]:
        values.append((f"cold recall@10 / that of {COUNTED}", cold / figure(COUNTED, "cold recall@10"), 1.0))
    for tail in ("tail ndcg@10", "long-tail ndcg@10"):
        values.append((f"{tail} / that of ids alone", figure("id + text", tail) / max(figure("id", tail), 1e-9), 1.0))
    log = f"{name}: {question}"
    held = [harness.at_least(f"{log}{what}", value, target) for what, value, target in values]
    held.insert(2, harness.claim(f"{log}relative drop of warm ndcg@10", drop, 0.02, drop < 0.02))
    return held


def tuning_claims(rows: list[dict[str, Any]]) -> list[harness.Claim]:
    """Return what LoRA trains and finds, against all parameters and against none."""
    share, cold = mean(rows, "lora", "share"), mean(rows, "lora", "cold recall@10")
    of_full, untuned = (cold / mean(rows, name, "cold recall@10") for name in ("full", UNTUNED))
    return [
        harness.claim("tuning: share of parameters that LoRA trains", share, 0.05, share < 0.05),
        harness.at_least("tuning: cold recall@10 of LoRA / of full tuning", of_full, 0.98),
        harness.at_least("tuning: cold recall@10 of LoRA / untuned", untuned, 1.0),
    ]


def measured(problems: list[Problem], seeds: list[int], chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """A row a seed; told as they come."""
    rows = []
    for problem, seed in zip(problems, seeds, strict=True):
        row = one_seed(problem, seed, chosen.text_settings, chosen.settings)
        rows.append(row)
        print(f"{problem.name} seed {seed}: {row['seconds']['id + text']:.0f} s of training", flush=True)
        for question, _ in problem.questions:
            for model in (name for name in MODELS if name in row):
                told = "  ".join(f"{name} {row[model][question + name]:.4f}" for name in SHOWN)
                print(f"    {question}{model:<16} {told}")
            chance = row["random"][f"{question}cold recall@10"]
            print(f"    {question}{'random':<16} cold recall@10 {chance:.5f}", flush=True)
    return rows


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beauty", nargs=2, type=Path, metavar=("SEQUENCES", "ITEMS"))
    parser.add_argument("--only", choices=["beauty", "grocery", "encoding", "tuning"])
    parser.add_argument("--part", choices=["validation", "test"], default="test")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--text-set", dest="text_settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--steps", type=int, default=200, help="of tuning, 64 events each")
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/text.json")
    chosen = parser.parse_args()
    if chosen.only in ("beauty", "tuning") and chosen.beauty is None:
        parser.error(f"--only {chosen.only} needs --beauty SEQUENCES ITEMS")
    quiet()
    plugin_manager().register(bseq_transformers, "transformers")
    seeds = [int(seed) for seed in chosen.seeds.split(",")]
    document: dict[str, Any] = {}
    held: list[harness.Claim] = []
    if chosen.only in (None, "encoding"):
        document["encoding"] = encoding()
        print(document["encoding"], flush=True)
        seconds = document["encoding"]["seconds"]
        held.append(harness.claim("encoding: seconds", seconds, 600.0, seconds < 600.0))
    if chosen.only in (None, "beauty") and chosen.beauty is not None:
        problems = [beauty(*chosen.beauty, chosen.part, seed) for seed in seeds]
        document["beauty"] = measured(problems, seeds, chosen)
    if chosen.only == "tuning":
        document["tuning"] = [
            tuning(
                problem,
                problem.recipe.replace(training={"seed": seed}).with_settings(chosen.settings),
                ItemTuningOptions(columns=problem.columns, steps=chosen.steps, seed=seed),
            )
            for problem, seed in ((beauty(*chosen.beauty, chosen.part, seed), seed) for seed in seeds)
        ]
        held += tuning_claims(document["tuning"])
    if chosen.only in (None, "grocery"):
        document["grocery"] = measured([grocery(chosen.part, seed) for seed in seeds], seeds, chosen)
    for name, questions in (("beauty", ("",)), ("grocery", ("", "new: "))):
        for question in questions if name in document else ():
            held += claims(name, document[name], question)
    harness.show(held, 50, "9.4f", ".4f")
    harness.write("text", document, held, path=chosen.json)


if __name__ == "__main__":
    main()
