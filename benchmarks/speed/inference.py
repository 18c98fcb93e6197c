"""Seconds of evaluation, of interests for all users and for one, and of a small training, beside other programs.

    make bench-inference                                               # a made-up log: 5,000 users, 12,000 items
    make bench-inference ARGS="sequences.txt --peers peers.toml"       # `user item item ...` lines; other programs

The model is that of the recipe `reference` (one epoch is trained: time does not depend on what was learned). Peers are
described as for `make bench-speed`, with the key `recommend_seconds` for ten items for every user, seen ones masked.
Medians of several calls in this one process. Writes benchmarks/results/inference.json.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks import harness
from benchmarks.speed.job import SETTINGS, sequences_file
from benchmarks.speed.programs import peer, run
from bseq_plugin import Recipe, evaluate, read_events, train
from bseq_plugin.model.interest_model import InterestModel
from bseq_plugin.model.run import Run

AIMS = {
    "evaluate all users, s": 1.5,
    "interests of all users, s": 1.0,
    "interest of one user, ms": 1.0,
    "bseq train on 100 users, s": 5.0,
}
PEER_AIM = 1 / 3


def median(call: Callable[[], object], repeats: int) -> float:
    """Seconds of ``call`` after one that is not counted."""
    call()
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def figures(sequences: Path, folder: Path) -> dict[str, float]:
    """What ``AIMS`` names."""
    recipe = Recipe.load("reference").with_settings([*SETTINGS, "training.epochs=1"])
    trained = train(read_events(str(sequences)), recipe, folder / "run", progress=False)
    model, histories = InterestModel.from_run(trained.path), Run(trained.path).sequences()
    longest = histories.take(np.array([histories.lengths.argmax()])).latest(recipe.encoder.max_length)
    few = folder / "few.txt"
    few.write_text("".join(sequences.read_text(encoding="utf-8").splitlines(keepends=True)[:100]), encoding="utf-8")
    command = [sys.executable, "-m", "bseq_plugin.cli.main", "train", str(few), "--recipe", "reference", "--out"]
    return {
        "evaluate all users, s": median(lambda: evaluate(trained, "test", [10], baselines=False), 5),
        "interests of all users, s": median(lambda: model.encode(histories), 5),
        "interest of one user, ms": 1e3 * median(lambda: model.encode(longest), 500),
        "bseq train on 100 users, s": statistics.median(run([*command, str(folder / f"few{i}")])[1] for i in range(3)),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sequences", nargs="?", type=Path)
    parser.add_argument("--peers", type=Path, help="TOML file, see make bench-speed ARGS=--help")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    programs = tomllib.loads(chosen.peers.read_text(encoding="utf-8")) if chosen.peers else {}
    with tempfile.TemporaryDirectory() as name:
        measured = figures(sequences_file(chosen.sequences, Path(name)), Path(name))
    claims = [harness.at_most(name, value, AIMS[name]) for name, value in measured.items()]
    peers = {program: peer(description)["recommend_seconds"] for program, description in programs.items()}
    for program, seconds in peers.items():
        ratio = measured["evaluate all users, s"] / seconds
        claims.append(harness.at_most(f"evaluate / {program}'s recommend", ratio, PEER_AIM))
    harness.show(claims, 36, "8.3f", ".2f")
    harness.write("inference", {"own": measured, "peers": peers}, claims, threads=chosen.threads)


if __name__ == "__main__":
    main()
