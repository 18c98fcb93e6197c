"""Seconds an epoch of `bseq train`, against the arithmetic of this machine and against other programs.

    make bench-speed                                               # a made-up log: 5,000 users, 12,000 items
    make bench-speed ARGS="sequences.txt --peers peers.toml"       # `user item item ...` lines; and other programs

The recipe is `reference`: sharded module, pipeline, optimizer, checkpoints, validation. peers.toml says for each
program which command to run (from an environment of its own) and where its figures stand in the JSON object that it
prints last:

    [rectools]
    command = "ENV/bin/python peer_rectools.py --max-epochs 2"
    epoch_seconds = "epoch.median_s"
    peak_mb = "peak_rss_mb.self"

Everything is measured in this one call, `bseq train` before and after each program, since the speed of a machine moves;
the ratios are what to quote. Writes benchmarks/results/speed.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any

import torch

from benchmarks import harness
from benchmarks.speed.job import SETTINGS, sequences_file
from benchmarks.speed.programs import peer, run
from bseq_plugin import Recipe
from bseq_plugin.data.prepare import PreparedLog, prepare
from bseq_plugin.data.training_data import TrainingData
from bseq_plugin.events.events import Events
from bseq_plugin.losses.precision import multiplies_in_bfloat16
from bseq_plugin.readers.read_events import read_events


def own_epochs(sequences: Path, epochs: int) -> dict[str, Any]:
    """Of ``bseq train``: the epochs after the first, everything else of the command, and peak memory."""
    settings = [*SETTINGS, f"training.epochs={epochs}", f"split.patience={epochs}"]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "bseq_plugin.cli.main", "train", str(sequences), "--out", f"{folder}/run"]
        _, seconds, peak = run([*command, "--recipe", "reference", *(a for s in settings for a in ("--set", s))])
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    taken = [json.loads(line)["seconds"] for line in lines]
    return {"epochs": taken[1:], "outside_epochs_seconds": seconds - sum(taken), "peak_mb": peak}


def side_by_side(
    sequences: Path, epochs: int, programs: dict[str, Any]
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Figures of ``bseq train``, measured before each program and after the last, and of the programs."""
    calls, peers = [own_epochs(sequences, epochs)], {}
    for name, program in programs.items():
        peers[name] = peer(program)
        calls.append(own_epochs(sequences, epochs))
    taken = [seconds for call in calls for seconds in call["epochs"]]
    outside = statistics.median(call["outside_epochs_seconds"] for call in calls)
    own = {"epoch_seconds": statistics.median(taken), "min": min(taken), "max": max(taken), "epochs": len(taken),
           "outside_epochs_seconds": outside, "peak_mb": max(call["peak_mb"] for call in calls)}  # fmt: skip
    return own, peers


def rates(threads: int) -> dict[str, float]:
    """Best matrix products (GFLOP/s, of float32 and of the type that training takes) and exponentials (G/s) here."""
    generator = torch.Generator().manual_seed(0)
    square = torch.randn(1024, 1024, generator=generator)
    logits_NC, h_CD = torch.randn(12_288, 64, generator=generator), torch.randn(64, 64, generator=generator)
    out = torch.empty_like(logits_NC)

    def best(step: Any) -> float:
        taken = []
        for _ in range(30):
            started = time.perf_counter()
            step()
            taken.append(time.perf_counter() - started)
        return min(taken)

    def gflops(dtype: torch.dtype) -> float:
        a, b, c, d = (x.to(dtype) for x in (square, logits_NC, h_CD, out))
        flop = 2 * 12_288 * 64 * 64 / 1e9
        return max(2 * 1024**3 / 1e9 / best(lambda: a @ a), flop / best(lambda: torch.mm(b, c, out=d)))

    bfloat16 = multiplies_in_bfloat16(logits_NC, "auto")
    return {
        "threads": threads,
        "bfloat16": float(bfloat16),
        "float32_gflops": gflops(torch.float32),
        "gemm_gflops": gflops(torch.bfloat16 if bfloat16 else torch.float32),
        "exp_gps": out.numel() / 1e9 / best(lambda: torch.exp(logits_NC, out=out)),
    }


def bound(log: PreparedLog, machine: dict[str, float]) -> dict[str, float]:
    """Seconds of an epoch's head if nothing but its products and exponentials were done, at the best measured rates."""
    n_targets = int(TrainingData(log.training, log.vocabulary, log.recipe).source.total_weight.sum())
    cells = n_targets * log.vocabulary.n_items
    gflop = 6 * cells * log.recipe.vectors.table_dim / 1e9  # logits and two gradients, 2 operations each
    return {"targets": n_targets, "head_gflop": gflop, "exponentials": cells,
            "seconds": gflop / machine["gemm_gflops"] + cells / 1e9 / machine["exp_gps"]}  # fmt: skip


def claims(own: dict[str, float], limit: dict[str, float], peers: dict[str, dict[str, float]]) -> list[harness.Claim]:
    """Return the ratios, those with an aim in docs/performance.md held against it."""
    aims = {"rectools": 1 / 40, "recbole": 1 / 40, "replay": 1 / 20, "raw_loop": 1.0}
    ratios = {
        f"epoch / {name}'s": (own["epoch_seconds"] / p["epoch_seconds"], aims.get(name)) for name, p in peers.items()
    }
    softmax = [p["peak_mb"] for name, p in peers.items() if name != "raw_loop"]
    if softmax:
        ratios["peak memory / leanest peer's"] = (own["peak_mb"] / min(softmax), 0.5)
    ratios["epoch / arithmetic bound"] = (own["epoch_seconds"] / limit["seconds"], 2.0)
    return [harness.at_most(name, value, aim) for name, (value, aim) in ratios.items()]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sequences", nargs="?", type=Path)
    parser.add_argument("--peers", type=Path, help="TOML file, see above")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    programs = tomllib.loads(chosen.peers.read_text(encoding="utf-8")) if chosen.peers else {}
    with tempfile.TemporaryDirectory() as folder:
        sequences = sequences_file(chosen.sequences, Path(folder))
        events: Events = read_events(str(sequences))
        log = prepare(events, Recipe.load("reference").with_settings(SETTINGS))
        machine = rates(chosen.threads)
        limit = bound(log, machine)
        own, peers = side_by_side(sequences, chosen.epochs, programs)
    measured = {"own": own, "machine": machine, "bound": limit, "peers": peers}
    for title, figures in {"bseq train": own, "machine": machine, "bound": limit, **peers}.items():
        print(f"{title:<12}", "  ".join(f"{name} {value:,.3g}" for name, value in figures.items()))
    held = claims(own, limit, peers)
    harness.show(held, 28)
    harness.write("speed", measured, held, threads=chosen.threads)


if __name__ == "__main__":
    main()
