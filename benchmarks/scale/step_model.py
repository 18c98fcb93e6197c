"""What a training step costs: a model of FLOPs and bytes, checked against measured steps, and a projection from it.

    make bench-step_model                                # measure, fit, check, project; 1 core a process
    make bench-step_model ARGS=--fit-only                # from the points of the last measurement

A step's cost is CPU seconds of a process, which other programs on the machine disturb less than the clock. The model's
few rates are fitted to every other point; the rest of the points are predicted. Writes
benchmarks/results/step_model.json.

Letters: V items, T events of a global batch, N candidates, R ranks, D width.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls

from benchmarks import harness
from benchmarks.harness import ROOT
from benchmarks.scale.step_projection import projections
from benchmarks.scale.step_terms import BLOCKS, DIM, FEED_FORWARD, LENGTH, TERMS, terms

ITEMS, EVENTS, CANDIDATES, RANKS = (
    (10_000, 100_000, 1_000_000, 10_000_000),
    (1_600, 4_800, 14_400),
    (256, 2_048),
    (1, 2, 4),
)
STEPS, WARM_UP = 5, 2


def fit(points: list[dict[str, Any]]) -> dict[str, float]:
    """Seconds for one of each term, none negative: least squares of the relative errors."""
    counted = np.array([[terms(point)[name] for name in TERMS] for point in points])
    seconds = np.array([point["cpu_seconds"] for point in points])
    scale = counted.max(axis=0)
    scale[scale == 0] = 1.0
    rates, _ = nnls(counted / scale / seconds[:, None], np.ones(len(points)))
    return dict(zip(TERMS, (rates / scale).tolist(), strict=True))


def every_other(point: dict[str, Any]) -> bool:
    """A chessboard over V, T, N and R: neighbours in any direction are on the other side."""
    grid = {"items": ITEMS, "events": EVENTS, "candidates": CANDIDATES, "ranks": RANKS}
    return sum(values.index(point[name]) for name, values in grid.items()) % 2 == 0


def predicted(point: dict[str, Any], rates: dict[str, float]) -> float:
    """Seconds of a step."""
    counted = terms(point)
    return sum(counted[name] * rates[name] for name in TERMS)


def measure_rank(rank: int, ranks: int, n_items: int, store: str) -> None:
    """All points of a number of items and ranks; prints them as JSON lines on rank 0."""
    import torch
    from torch import distributed as dist

    from bseq_plugin.data.training_data import TrainingData
    from bseq_plugin.distributed import world
    from bseq_plugin.events.sequences import Sequences
    from bseq_plugin.events.vocabulary import Vocabulary
    from bseq_plugin.model.task import SequenceInterestTask
    from bseq_plugin.recipe.recipe import Recipe
    from bseq_plugin.training.pipeline import EpochPipeline
    from bseq_plugin.training.row_update import pooled_row_update
    from bseq_plugin.training.sharding import shard

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    recipe = Recipe(
        encoder={"max_length": LENGTH, "n_blocks": BLOCKS, "n_heads": 2, "feed_forward": FEED_FORWARD},
        vectors={"dim": DIM},
        events={"features": ()},
        negatives={"kind": "uniform", "n": CANDIDATES[0]},
        split="none",
    )
    vocabulary = Vocabulary(np.arange(n_items), np.ones(n_items, np.int64))
    with world() as here, pooled_row_update():
        task = shard(SequenceInterestTask(recipe, n_items, 0, device="meta"), recipe.training, "row_wise", here)
        task.task.settle({"encoder": {"matmul": "float32"}, "loss": {"matmul": "float32"}})
        pipeline = EpochPipeline(task, here)
        task.model.train()
        for n_events, n_candidates in itertools.product(EVENTS, CANDIDATES):
            n_users = n_events // LENGTH
            draws = np.random.default_rng(0).random(n_events * (STEPS + WARM_UP))
            items = (np.exp(draws * np.log(n_items)).astype(np.int64) * 2_654_435_761) % n_items + 1
            offsets = np.arange(0, len(items) + 1, LENGTH)
            sequences = Sequences(np.arange(len(offsets) - 1), offsets, items)
            chosen = recipe.replace(
                negatives={"n": n_candidates, "kind": "uniform"}, training={"batch": {"users": n_users}}
            )
            batches = TrainingData(sequences, vocabulary, chosen, rank, ranks).batches(0)
            outputs = pipeline.outputs(batches)
            cpu, wall = [], []
            for _ in range(STEPS + WARM_UP):
                started = time.process_time(), time.perf_counter()
                next(outputs)
                cpu.append(time.process_time() - started[0])
                wall.append(time.perf_counter() - started[1])
            outputs.close()  # the model is a plain one again
            seconds = here.sum([float(np.median(values[WARM_UP:])) / ranks for values in (cpu, wall)])
            peak_mb = max(here.gather(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))
            if rank == 0:
                point = {"items": n_items, "events": n_events, "candidates": n_candidates, "ranks": ranks}
                found = {"cpu_seconds": seconds[0], "wall_seconds": seconds[1], "peak_mb": peak_mb}
                print("POINT", json.dumps({**point, **found}), flush=True)
    dist.destroy_process_group()


def measure() -> list[dict[str, Any]]:
    """Every point, in processes of their own."""
    points = []
    for n_items, ranks in itertools.product(ITEMS, RANKS):
        with tempfile.TemporaryDirectory() as folder:
            module = [sys.executable, "-m", "benchmarks.scale.step_model"]
            command = [*module, "--rank-of", str(ranks), str(n_items), f"{folder}/store"]
            environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
            jobs = [
                subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, text=True, env=environment)
                for rank in range(ranks)
            ]
            told = [job.communicate()[0] for job in jobs]
        found = [json.loads(line[6:]) for line in told[0].splitlines() if line.startswith("POINT")]
        if len(found) != len(EVENTS) * len(CANDIDATES):
            raise SystemExit(f"measuring {n_items} items on {ranks} ranks failed")
        points += found
        print(f"{n_items:>10,} items, {ranks} ranks: {len(found)} points", flush=True)
    return points


def draw(points: list[dict[str, Any]], path: Path) -> None:
    """Measured (dots) and predicted (lines) against the items, a colour a number of events, a column a number of ranks;
    below it the peak memory of a rank, with its shard of table and optimizer dashed.
    """
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(RANKS), figsize=(4 * len(RANKS), 6), sharex=True, sharey="row")
    for column, ranks in enumerate(RANKS):
        above, below = axes[0, column], axes[1, column]
        for number, (n_events, n_candidates) in enumerate(itertools.product(EVENTS, CANDIDATES)):
            here = [p for p in points if (p["ranks"], p["events"], p["candidates"]) == (ranks, n_events, n_candidates)]
            items = [p["items"] for p in here]
            colour = pyplot.get_cmap("tab20")(number)
            above.plot(items, [1e3 * p["predicted"] for p in here], color=colour)
            label = f"T {n_events:,}, N {n_candidates:,}"
            above.plot(items, [1e3 * p["cpu_seconds"] for p in here], "o", color=colour)
            below.plot(items, [p["peak_mb"] for p in here], "o-", color=colour, label=label)
        below.plot(
            ITEMS, [n / ranks * (DIM + 1) * 4 / 2**20 for n in ITEMS], "--", color="grey", label="shard, optimizer"
        )
        above.set(xscale="log", yscale="log", title=f"{ranks} rank{'s' * (ranks > 1)}")
        below.set(xlabel="items", yscale="log", ylim=(10, 10_000))
    axes[0, 0].set_ylabel("CPU ms a step and rank")
    axes[1, 0].set_ylabel("peak MB of a rank")
    axes[1, 0].legend(fontsize=7, loc="upper left", ncols=2)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Measure, fit, print, write."""
    if sys.argv[1:2] == ["--rank-of"]:
        ranks, n_items, store, rank = sys.argv[2:]
        measure_rank(int(rank), int(ranks), int(n_items), store)
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", type=Path, help="an .svg file for the curves")
    parser.add_argument("--fit-only", action="store_true", help="take the points that were measured last")
    given = parser.parse_args()
    if given.fit_only:
        before = harness.last("step_model")
        points, measured_at = before["figures"]["points"], before["commit"]
    else:
        points, measured_at = measure(), harness.commit()
    for point in points:
        point["fitted"] = every_other(point)
    rates = fit([point for point in points if point["fitted"]])
    for point in points:
        point["predicted"] = predicted(point, rates)
        point["error"] = point["predicted"] / point["cpu_seconds"] - 1
        print(
            f"V {point['items']:>10,}  T {point['events']:>6,}  N {point['candidates']:>5,}  R {point['ranks']}  "
            f"{1e3 * point['cpu_seconds']:8.1f} ms  predicted {1e3 * point['predicted']:8.1f}  {point['error']:+6.1%}"
            f"{'' if point['fitted'] else '  not fitted'}"
        )
    errors = np.abs([point["error"] for point in points if not point["fitted"]])
    claims = [
        harness.at_most("largest relative error of points that were not fitted", float(errors.max()), 0.25),
        harness.at_most("their mean relative error", float(errors.mean()), 0.25),
    ]
    for name in TERMS:
        print(f"{name:<11} {rates[name]:.3e} s each" + (f", {1e-9 / rates[name]:.1f} G/s" if rates[name] > 0 else ""))
    harness.show(claims, 55, "6.3f")
    if given.picture is not None:
        draw(points, given.picture)
    projected = projections()
    for line in projected:
        print(json.dumps(line))
    figures = {"points": points, "rates": rates, "projections": projected}
    harness.write("step_model", figures, claims, threads=1, commit=measured_at)
    sys.exit(int(not all(one["holds"] for one in claims)))


if __name__ == "__main__":
    main()
