"""Seconds an epoch of the real training path, and where one step's time goes, on a made-up log.

    python benchmarks/epoch.py --users 5000 --items 12000 --epochs 3

The log is Zipf-popular items in short histories (geometric lengths), from a seed. The same machine runs both recipes in
one call; the ratio is what to quote. Shares are of one profiled step: forward parts, backward, batch building.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from bseq_plugin import Recipe, train
from bseq_plugin.cli.main import _quiet
from bseq_plugin.data.events import Events
from bseq_plugin.data.prepare import prepare
from bseq_plugin.data.training_data import TrainingData
from bseq_plugin.model.task import SequenceInterestTask


def made_up_log(n_users: int, n_items: int, seed: int) -> Events:
    """Users with 3 + geometric(mean 6) events of Zipf-popular items."""
    rng = np.random.default_rng(seed)
    lengths = 3 + rng.geometric(1 / 6, n_users)
    users = np.repeat(np.arange(n_users), lengths)
    weights = 1.0 / np.arange(1, n_items + 1)
    items = rng.choice(n_items, len(users), p=weights / weights.sum())
    return Events.in_order(users, items)


def epoch_seconds(events: Events, recipe: Recipe) -> list[float]:
    """Of each epoch after the first, which also plans and warms up."""
    with tempfile.TemporaryDirectory() as folder:
        run = train(events, recipe, Path(folder) / "run", progress=False)
        lines = (run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["seconds"] for line in lines][1:]


def step_shares(events: Events, recipe: Recipe, n_steps: int = 20) -> dict[str, float]:
    """Share of batch building, encoder, loss and the rest (look-ups, backward) in unsharded steps."""
    log = prepare(events, recipe)
    data = TrainingData(log.training, log.vocabulary, log.recipe)
    task = SequenceInterestTask(log.recipe, log.vocabulary.n_items).train()
    spent = {"encoder forward": 0.0, "loss forward and gradients": 0.0}

    def timed(module: torch.nn.Module, name: str) -> None:
        forward = module.forward

        def run(*args: object) -> object:
            started = time.perf_counter()
            result = forward(*args)
            spent[name] += time.perf_counter() - started
            return result

        module.forward = run  # type: ignore[method-assign]

    timed(task.interest_encoder.sequence_encoder, "encoder forward")
    timed(task.objective, "loss forward and gradients")
    batches = data.batches(0)
    started, building, done = time.perf_counter(), 0.0, 0
    for _ in range(min(n_steps, data.steps_per_epoch)):
        before = time.perf_counter()
        batch = next(batches)
        building += time.perf_counter() - before
        task(batch)[0].backward()
        task.zero_grad()
        done += 1
    total = time.perf_counter() - started
    shares = {"batch building": building / total, **{name: seconds / total for name, seconds in spent.items()}}
    return {"ms a step": 1e3 * total / done, **shares, "look-up and backward": 1.0 - sum(shares.values())}


def main() -> None:
    """Print medians, the ratio, and the shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=5_000)
    parser.add_argument("--items", type=int, default=12_000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    _quiet()
    events = made_up_log(chosen.users, chosen.items, chosen.seed)
    reference = Recipe.load("reference").replace(epochs=chosen.epochs, patience=chosen.epochs, event_features=())
    sampled = reference.replace(candidates=256)
    print(
        f"{len(events):,} events, {chosen.users:,} users, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    medians = {}
    for name, recipe in {"whole-catalogue softmax": reference, "sampled softmax, 256": sampled}.items():
        seconds = epoch_seconds(events, recipe)
        medians[name] = statistics.median(seconds)
        print(f"{name:<26} {medians[name]:.2f} s/epoch (min {min(seconds):.2f}, max {max(seconds):.2f})")
    whole, few = medians.values()
    print(f"whole / sampled            {whole / few:.2f}")
    for name, value in step_shares(events, reference).items():
        print(f"  {name:<28} {value:.1f}" if name.startswith("ms") else f"  {name:<28} {value:.0%}")


if __name__ == "__main__":
    main()
