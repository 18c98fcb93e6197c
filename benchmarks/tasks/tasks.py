"""What the vectors are worth beside candidates: purchase, churn, demand, anomalies, segments, on the grocery log.

    make bench-tasks ARGS="--seeds 0,1,2 --threads 1"       # needs: pip install -e '.[demo,rankers]'
    make bench-tasks ARGS="--seeds 0 --every 6 --epochs 2"  # to see that it runs
    make bench-tasks ARGS="--tables anomalies,segments"     # some tables only; the others' figures stay

The demo's encoder, trained on purchases before September 2017 and then frozen. Heads, logistic regression and boosted
trees learn from what happened in the 28 days after five instants in September, stop on November, and are judged on the
28 days from 1 December. integrations/bseq-behaviour/docs/tasks.md has the protocol of each table. Writes
benchmarks/results/tasks.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from benchmarks import harness
from benchmarks.tasks.categories import categories
from benchmarks.tasks.measure import Scored, summary
from benchmarks.tasks.multitask import Fitted, multitask, multitask_claims, multitask_summary
from benchmarks.tasks.next_k import Judged, next_k, next_k_claims, next_k_summary
from benchmarks.tasks.propensity import CONTROL, RETURN, RETURNED, STRONG, STRONG_RETURNED, USER_TASKS, UserTasks
from benchmarks.tasks.protocol import ENCODER_UNTIL, Case, encoder
from benchmarks.tasks.rankers import BOTH, THEIRS
from benchmarks.tasks.uses import anomalies, demand, segments
from bseq_plugin.demo.data import load

TABLES = ("propensity", "categories", "demand", "anomalies", "segments", "multitask", "next_k")
# of these pairs the first is to beat the second outside noise
CLAIMED = ((BOTH, THEIRS), (RETURN, THEIRS), (RETURNED, THEIRS), (RETURNED, CONTROL), (STRONG_RETURNED, STRONG))
note = Console(stderr=True)


def measure(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The figures of the tables asked for."""
    data, figures = load("completejourney", asked.every), {}
    seeds = [int(seed) for seed in asked.seeds.split(",")]
    rankers: dict[str, dict[str, list[Scored]]] = {}
    others: dict[str, list[Any]] = {}
    judged: list[Judged] = []
    fitted: list[Fitted] = []
    for seed in seeds:
        started = time.perf_counter()
        if set(asked.tables) - {"segments"}:
            note.print(f"[bold]seed {seed}: the encoder of {ENCODER_UNTIL}[/bold]")
            case = Case(data, encoder(data, ENCODER_UNTIL, seed, asked.epochs, folder))
        for table in asked.tables:
            if table == "propensity":
                tasks = UserTasks(case, seed)
                for name in USER_TASKS:
                    _add(rankers, name, tasks.scored(name))
            elif table == "categories":
                _add(rankers, "purchase:28 of 40 product categories", categories(case, seed))
            elif table == "demand":
                found = {column: demand(case, column, seed) for column in ("department", "product_category")}
                others.setdefault("demand", []).append(found)
            elif table == "multitask":
                fitted.append(multitask(case, seed))
            elif table == "next_k":
                judged.append(next_k(case, seed))
            elif table == "anomalies":
                others.setdefault("anomalies", []).append(anomalies(case, seed))
            else:
                others.setdefault("segments", []).append(segments(data, seed, asked.epochs, folder))
            note.print(f"{table}: {time.perf_counter() - started:.0f} s so far")
    for name, ranked in rankers.items():
        figures[name] = summary(ranked, [base for base in (THEIRS, STRONG, CONTROL) if base in ranked])
    figures |= {"next_k": next_k_summary(judged)} if judged else {}
    figures |= {"multitask": multitask_summary(fitted)} if fitted else {}
    return figures | {name: {"seeds": dict(zip(asked.seeds.split(","), f, strict=True))} for name, f in others.items()}


def _add(rankers: dict[str, dict[str, list[Scored]]], table: str, found: dict[str, Scored]) -> None:
    for name, scored in found.items():
        rankers.setdefault(table, {}).setdefault(name, []).append(scored)


def claims(figures: dict[str, Any]) -> list[harness.Claim]:
    """Return what the tables are asked to show, computed from their figures."""
    made = []
    for name, of in figures.items():
        for ours, base in CLAIMED:
            if ours in of and base in of:
                over = of[ours]["over"][base]
                claim = f"{name}: AUROC of {ours} over {base}"
                made.append(harness.claim(claim, over["gain"], 0.0, over["outside_noise"]))
    if "demand" in figures:
        for column in ("department", "product_category"):
            of_seeds = [found[column] for found in figures["demand"]["seeds"].values()]
            value = float(np.mean([one["ours, bottom up"] for one in of_seeds]))
            naive = float(of_seeds[0]["seasonal naive (the week before)"])
            made.append(harness.claim(f"demand by {column}: WAPE", value, naive, value < naive))
    if "next_k" in figures:
        made += next_k_claims(figures["next_k"])
    if "multitask" in figures:
        made += multitask_claims(figures["multitask"])
    if "anomalies" in figures:
        of_seeds = list(figures["anomalies"]["seeds"].values())
        value = min(one["injected"]["swap"]["auroc"] for one in of_seeds)
        made.append(harness.at_least("account swaps: least AUROC", value, 0.9))
        for rate in of_seeds[0]["false_alarms_over_asked"]["mean"]:
            share = float(np.mean([one["false_alarms_over_asked"]["mean"][rate] for one in of_seeds]))
            name = f"false alarms over those asked for, rate {rate}, mean of four windows"
            made.append(harness.claim(name, share, 1.0, 0.8 <= share <= 1.2))
    return made


def show(figures: dict[str, Any]) -> None:
    """Print what there is."""
    for name, of in figures.items():
        print(f"\n{name}")
        if THEIRS not in of:
            print(json.dumps(of, indent=1))
            continue
        for ranker, one in of.items():
            print(
                f"  {ranker:<28} AUROC {one['auroc']:.4f} sd {one['auroc_sd']:.4f}  AP {one['average_precision']:.4f}"
            )
            for base, over in one["over"].items():
                low, high = over["interval"]
                print(f"    over {base:<28} {over['gain']:+.4f} ({low:+.4f} to {high:+.4f})")


def main() -> None:
    """Train, judge, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--every", type=int, default=1, help="households: 1 = all, 6 = a sixth")
    parser.add_argument("--epochs", type=int, default=10, help="of the encoders")
    parser.add_argument("--tables", default=",".join(TABLES), help=f"some of {','.join(TABLES)}")
    parser.add_argument("--threads", type=int, help="torch's threads; default: its own choice")
    parser.add_argument("--encoders", type=Path, help="folder that keeps the encoders, to be used again")
    asked = parser.parse_args()
    asked.tables = asked.tables.split(",")
    if unknown := set(asked.tables) - set(TABLES):
        parser.error(f"--tables: {sorted(unknown)} are none of {', '.join(TABLES)}")
    if asked.threads:
        torch.set_num_threads(asked.threads)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(asked, asked.encoders or Path(folder))
    show(figures)
    for claim in claims(figures):
        verdict = harness.verdict(claim)
        print(f"{claim['name']:<76} {claim['value']:+.4f} (target {claim['target']:+.4f})  {verdict}")
    write(figures)


def write(figures: dict[str, Any]) -> None:
    """Replace the figures of these tables; each says how and when it was made."""
    made, before = harness.made(), harness.last("tasks")
    kept = {**before["figures"], **figures}
    harness.write("tasks", kept, claims(kept), made={**before.get("made", {}), **dict.fromkeys(figures, made)})


if __name__ == "__main__":
    main()
