"""Where the milliseconds of a training step go: encoder, head, look-up, optimizer, batches, TorchRec's pipeline.

    make bench-step_parts                                                    # a made-up log
    make bench-step_parts ARGS="sequences.txt --picture performance.svg"

The path is that of `bseq train` with the recipe `reference`: sharded module, TorchRec's pipeline, optimizers. Steps are
timed without a profiler, then with torch's; the profile shares out the time of the first. Writes
benchmarks/results/step_parts.json.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

from benchmarks import harness
from benchmarks.speed.job import SETTINGS, sequences_file
from bseq_plugin import Recipe
from bseq_plugin.data.prepare import PreparedLog, prepare
from bseq_plugin.data.training_data import TrainingData
from bseq_plugin.distributed import world
from bseq_plugin.readers.read_events import read_events
from bseq_plugin.training.pipeline import EpochPipeline
from bseq_plugin.training.row_update import pooled_row_update
from bseq_plugin.training.sharding import shard
from bseq_plugin.training.trainer import build_task

WARM_UP, STEPS = 60, 60
# how the profile names what a part is made of: beginnings of names, none inside another of the list
FORWARD, BACKWARD = ("## forward",), ("## backward",)
HEAD = ("_ChunkedLoss", "autograd::engine::evaluate_function: _ChunkedLossBackward")
LOOK_UP = ("[lookup]_", "autograd::engine::evaluate_function: torch::autograd::CppNode<SplitNoBagLookup")
OPTIMIZER = ("Optimizer.step#CombinedOptimizer.step",)
BATCHES = ("## load batch",)


def step_parts(log: PreparedLog) -> dict[str, float]:
    """ms of a step by part, one process."""
    with world() as here, pooled_row_update():
        data = TrainingData(log.training, log.vocabulary, log.recipe)
        task = build_task(log, device="meta")
        task.settle(task.machine_choices())
        sharded = shard(task, log.recipe.training, "auto", here)
        sharded.model.train()
        batches = (batch for epoch in range(1_000) for batch in data.batches(epoch))
        outputs = EpochPipeline(sharded, here).outputs(batches)

        def steps(number: int) -> float:
            started = time.perf_counter()
            for _ in range(number):
                next(outputs)
            return 1e3 * (time.perf_counter() - started) / number

        steps(WARM_UP)
        plain_ms = steps(STEPS)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            profiled_ms = steps(STEPS)
    averages = profile.key_averages()

    def share(names: tuple[str, ...]) -> float:
        """Of the profiled time."""
        found = [one for one in averages if one.key.startswith(names)]
        if not found:
            raise SystemExit(f"the profile has nothing called {names}; another torchrec or torch names it otherwise")
        return sum(one.cpu_time_total for one in found) / 1e3 / STEPS / profiled_ms

    head, look_up, optimizer, made = share(HEAD), share(LOOK_UP), share(OPTIMIZER), share(BATCHES)
    encoder = share(FORWARD) + share(BACKWARD) - head - look_up
    parts = {
        "encoder": encoder,
        "head: loss and gradients": head,
        "look-up and table update": look_up,
        "optimizer of the dense part": optimizer,
        "batches": made,
        "TorchRec's pipeline": 1.0 - encoder - head - look_up - optimizer - made,
    }
    return {name: part * plain_ms for name, part in parts.items()}


def draw(parts: dict[str, float], path: Path) -> None:
    """The parts as bars, longest on top."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 0.45 * len(parts) + 0.9), layout="constrained")
    axes = figure.subplots()
    names = sorted(parts, key=lambda name: parts[name])
    bars = axes.barh(names, [parts[name] for name in names], color="#4c72b0")
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.set_xlabel("ms of one step")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def main() -> None:
    """Measure, print, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sequences", nargs="?", type=Path)
    parser.add_argument("--picture", type=Path, help="draw the parts here (.svg, .png)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    with tempfile.TemporaryDirectory() as folder:
        sequences = sequences_file(chosen.sequences, Path(folder))
        log = prepare(read_events(str(sequences)), Recipe.load("reference").with_settings(SETTINGS))
        parts = step_parts(log)
    for name, ms in parts.items():
        print(f"{name:<28} {ms:6.2f} ms  {ms / sum(parts.values()):5.1%}")
    if chosen.picture:
        draw(parts, chosen.picture)
    harness.write("step_parts", {"ms": parts}, threads=chosen.threads)


if __name__ == "__main__":
    main()
