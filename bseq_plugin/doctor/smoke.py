"""Two processes that shard a small table, train a step and agree: `python -m bseq_plugin.doctor.smoke` prints "fine".

What fails on a new machine is seldom ours: a host name that does not resolve, a firewall, mismatched wheels. This
finds it in seconds, without a log or a run directory.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

N_ITEMS, DIM, N_USERS = 40, 8, 6


def main() -> int:
    """Exit code 0 if both processes end well."""
    with tempfile.TemporaryDirectory() as folder:
        # before torch is imported: a process that has used its threads must not be forked
        children = []
        for rank in (0, 1):
            child = os.fork()
            if child == 0:
                os._exit(_child(rank, Path(folder) / "store"))
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(codes):
        return 1
    print("fine")  # noqa: T201 - the result
    return 0


def _child(rank: int, store: Path) -> int:
    try:
        _train_a_step(rank, store)
    except BaseException as error:
        print(f"rank {rank}: {type(error).__name__}: {error}".splitlines()[0], file=sys.stderr)  # noqa: T201
        return 1
    return 0


def _train_a_step(rank: int, store: Path) -> None:
    from datetime import timedelta

    import numpy as np
    import torch
    from torch import distributed as dist
    from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

    from bseq_plugin.data.training_data import TrainingData
    from bseq_plugin.distributed import World
    from bseq_plugin.events.sequences import Sequences
    from bseq_plugin.events.vocabulary import Vocabulary
    from bseq_plugin.model.task import SequenceInterestTask
    from bseq_plugin.recipe.recipe import Recipe
    from bseq_plugin.training.sharding import shard

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    here = World(rank, 2, torch.device("cpu"))
    recipe = Recipe(
        encoder={"n_blocks": 1, "n_heads": 2, "dropout": 0.0},
        vectors={"dim": DIM},
        events={"features": ()},
        split="none",
    )
    items = np.random.default_rng(0).integers(1, N_ITEMS + 1, N_USERS * 5)
    sequences = Sequences(np.arange(N_USERS), np.arange(0, len(items) + 1, 5), items)
    vocabulary = Vocabulary(np.arange(N_ITEMS), np.bincount(items, minlength=N_ITEMS + 1)[1:])
    torch.manual_seed(0)
    sharded = shard(SequenceInterestTask(recipe, N_ITEMS, device="meta"), recipe.training, "row_wise", here)
    pipeline = TrainPipelineSparseDist(sharded.model, sharded.optimizer, here.device)
    output = pipeline.progress(TrainingData(sequences, vocabulary, recipe, rank, 2).batches(0))
    losses, seen = here.sum([float(output["loss"]), float(output["n_targets"])])
    # an untrained model knows nothing: log(V) a target, for both; and each target is seen by one of them
    if not (0.5 < losses / 2 / np.log(N_ITEMS) < 1.5 and seen == N_USERS * 4):
        raise RuntimeError(f"two processes saw {seen:.0f} targets with a mean loss of {losses / 2:.3f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
