"""Seconds an epoch of `bseq train`, against the arithmetic of this machine and against other programs.

    python benchmarks/speed.py                                       # a made-up log: 5,000 users, 12,000 items
    python benchmarks/speed.py sequences.txt --peers peers.toml      # `user item item ...` lines; and other programs

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
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bseq_plugin import Recipe
from bseq_plugin.data.events import Events
from bseq_plugin.data.prepare import PreparedLog, prepare
from bseq_plugin.data.training_data import TrainingData
from bseq_plugin.losses.precision import multiplies_in_bfloat16
from bseq_plugin.readers.read_events import read_events

RESULTS = Path(__file__).parent / "results" / "speed.json"
SETTINGS = ["event_features=[]"]


def made_up_log(n_users: int, n_items: int, seed: int) -> str:
    """Lines of users with 3 + geometric(mean 6) events of Zipf-popular items."""
    rng = np.random.default_rng(seed)
    weights = 1.0 / np.arange(1, n_items + 1)
    items = rng.choice(n_items, (n_users, 40), p=weights / weights.sum())
    lengths = np.minimum(3 + rng.geometric(1 / 6, n_users), 40)
    return "".join(
        f"{u} {' '.join(map(str, row[:n]))}\n" for u, (row, n) in enumerate(zip(items, lengths, strict=True))
    )


def run(command: list[str]) -> tuple[str, float, float]:
    """(stdout, seconds, peak MB of the process) of a command that must succeed."""
    measured = (
        "import resource, subprocess, sys\n"
        "done = subprocess.run(sys.argv[1:])\n"
        "print('PEAK', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)\n"
        "sys.exit(done.returncode)\n"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", measured, *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{shlex.join(command)} failed:\n{done.stderr[-2000:]}")
    text, _, peak = done.stdout.rpartition("PEAK")
    return text, time.perf_counter() - started, float(peak)


def own_epochs(sequences: Path, epochs: int) -> dict[str, Any]:
    """Of ``bseq train``: the epochs after the first, everything else of the command, and peak memory."""
    settings = [*SETTINGS, f"epochs={epochs}", f"patience={epochs}"]
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


def peer(program: dict[str, str]) -> dict[str, float]:
    """The figures named in peers.toml, from the JSON object that the program prints last."""
    text, seconds, peak = run(shlex.split(program["command"]))
    document = json.loads(text[text.rindex("\n{") :] if "\n{\n" in text else text[text.index("{") :])

    def figure(path: str) -> float:
        value: Any = document
        for key in path.split("."):
            value = value[key]
        return float(value)

    figures = {name: figure(path) for name, path in program.items() if name != "command"}
    return {"peak_mb": peak, "command_seconds": seconds, **figures}


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
    gflop = 6 * cells * log.recipe.vector_dim / 1e9  # logits and two gradients, 2 operations each
    return {"targets": n_targets, "head_gflop": gflop, "exponentials": cells,
            "seconds": gflop / machine["gemm_gflops"] + cells / 1e9 / machine["exp_gps"]}  # fmt: skip


def commit() -> str:
    """The commit of the checkout."""
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def claims(own: dict[str, float], limit: dict[str, float], peers: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """What of the aims of docs/performance.md holds in this run."""
    aims = {"rectools": 1 / 40, "recbole": 1 / 40, "replay": 1 / 20, "raw_loop": 1.0}
    ratios = {
        f"epoch / {name}'s": (own["epoch_seconds"] / p["epoch_seconds"], aims.get(name)) for name, p in peers.items()
    }
    softmax = [p["peak_mb"] for name, p in peers.items() if name != "raw_loop"]
    if softmax:
        ratios["peak memory / leanest peer's"] = (own["peak_mb"] / min(softmax), 0.5)
    ratios["epoch / arithmetic bound"] = (own["epoch_seconds"] / limit["seconds"], 2.0)
    return [{"name": n, "value": v, "target": t, "holds": t is None or v <= t} for n, (v, t) in ratios.items()]


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
        sequences = chosen.sequences
        if sequences is None:
            sequences = Path(folder) / "sequences.txt"
            sequences.write_text(made_up_log(5_000, 12_000, seed=0), encoding="utf-8")
        events: Events = read_events(str(sequences))
        log = prepare(events, Recipe.load("reference").with_settings(SETTINGS))
        machine = rates(chosen.threads)
        limit = bound(log, machine)
        own, peers = side_by_side(sequences, chosen.epochs, programs)
    found = claims(own, limit, peers)
    for title, figures in {"bseq train": own, "machine": machine, "bound": limit, **peers}.items():
        print(f"{title:<12}", "  ".join(f"{name} {value:,.3g}" for name, value in figures.items()))
    for claim in found:
        verdict = "holds" if claim["holds"] else "MISSED"
        print(f"{claim['name']:<28} {claim['value']:.3f}  aim {claim['target']}  {verdict}")
    RESULTS.parent.mkdir(exist_ok=True)
    document = {
        "command": shlex.join(["python", "benchmarks/speed.py", *(Path(a).name for a in sys.argv[1:])]),
        "commit": commit(),
        "machine": f"{platform.machine()}, {chosen.threads} threads, torch {torch.__version__}",
        "figures": {"own": own, "machine": machine, "bound": limit, "peers": peers},
        "claims": found,
    }
    RESULTS.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
