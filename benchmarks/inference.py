"""Seconds of evaluation, of interests for all users and for one, and of a small training, beside other programs.

    python benchmarks/inference.py                                       # a made-up log: 5,000 users, 12,000 items
    python benchmarks/inference.py sequences.txt --peers peers.toml      # `user item item ...` lines; other programs

The model is that of the recipe `reference` (one epoch is trained: time does not depend on what was learned). Peers are
described as for benchmarks/speed.py, with the key `recommend_seconds` for ten items for every user, seen ones masked.
Medians of several calls in this one process. Writes benchmarks/results/inference.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from speed import SETTINGS, commit, made_up_log, peer, run

from bseq_plugin import Recipe, evaluate, read_events, train
from bseq_plugin.model.interest_model import InterestModel
from bseq_plugin.model.run import Run

RESULTS = Path(__file__).parent / "results" / "inference.json"
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
    recipe = Recipe.load("reference").with_settings([*SETTINGS, "epochs=1"])
    trained = train(read_events(str(sequences)), recipe, folder / "run", progress=False)
    model, histories = InterestModel.from_run(trained.path), Run(trained.path).sequences()
    longest = histories.take(np.array([histories.lengths.argmax()])).latest(recipe.max_length)
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
    parser.add_argument("--peers", type=Path, help="TOML file, see benchmarks/speed.py")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    programs = tomllib.loads(chosen.peers.read_text(encoding="utf-8")) if chosen.peers else {}
    with tempfile.TemporaryDirectory() as name:
        sequences = chosen.sequences or Path(name) / "sequences.txt"
        if chosen.sequences is None:
            sequences.write_text(made_up_log(5_000, 12_000, seed=0), encoding="utf-8")
        found = figures(sequences, Path(name))
    rows: list[dict[str, Any]] = [{"name": n, "value": v, "target": AIMS[n]} for n, v in found.items()]
    for program, description in programs.items():
        seconds = peer(description)["recommend_seconds"]
        ratio = found["evaluate all users, s"] / seconds
        rows.append({"name": f"evaluate / {program}'s recommend", "value": ratio, "target": PEER_AIM, "peer": seconds})
    for row in rows:
        row["holds"] = row["value"] <= row["target"]
        print(
            f"{row['name']:<36} {row['value']:8.3f}  aim {row['target']:.2f}  {'holds' if row['holds'] else 'MISSED'}"
        )
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"commit": commit(), "threads": chosen.threads, "claims": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
