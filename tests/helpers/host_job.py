"""A host with an encoder inside: sharded, trained by TorchRec's pipeline, published, and searched both ways.

The rule of its data: after the item of row i comes that of row i + 1. A test folder has a script with its hosts, whose
``main`` calls ``as_a_process``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import distributed as dist
from torchrec.distributed import DistributedModelParallel, TrainPipelineSparseDist
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

import bseq_plugin as bseq

V, U, L = 40, 120, 4
CPU = torch.device("cpu")
EQUAL = pytest.approx  # of two hit rates of the same users
OPTIMIZERS = {
    "sgd": {"optimizer": EmbOptimType.EXACT_SGD, "learning_rate": 10.0},
    "adagrad": {"optimizer": EmbOptimType.EXACT_ADAGRAD, "learning_rate": 0.3},
    "row_wise_adagrad": {"optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD, "learning_rate": 0.3},
}


def pipelined(task, bags, sharding, optimizer):
    """The task under DMP, and its pipeline; ``bags``: names of the host's own tables."""
    fused = OPTIMIZERS[optimizer]
    sharders = [EmbeddingCollectionSharder(fused_params=fused), EmbeddingBagCollectionSharder(fused_params=fused)]
    of_bags = "table_wise" if sharding == "row_wise" else sharding  # TorchRec's bags have no row_wise on a CPU
    shardings = {"item": sharding, **dict.fromkeys(bags, of_bags)}
    constraints = {
        name: ParameterConstraints(sharding_types=[kind], min_partition=8) for name, kind in shardings.items()
    }
    topology = Topology(world_size=dist.get_world_size(), compute_device="cpu")
    plan = EmbeddingShardingPlanner(topology=topology, constraints=constraints).collective_plan(task, sharders)
    parallel = DistributedModelParallel(task, device=CPU, plan=plan, sharders=sharders)
    dense = dict(in_backward_optimizer_filter(parallel.named_parameters()))
    dense = {name: parameter for name, parameter in dense.items() if parameter.requires_grad}
    adam = KeyedOptimizerWrapper(dense, lambda parameters: torch.optim.Adam(parameters, lr=1e-2))
    return parallel, TrainPipelineSparseDist(parallel, CombinedOptimizer([parallel.fused_optimizer, adam]), CPU)


def train(task, bags, sharding, optimizer, n_steps, make):
    """The host under DMP, its pipeline attached and with steps left, and the losses; ``make``: seed -> batch."""
    parallel, pipeline = pipelined(task.train(), bags, sharding, optimizer)
    n, rank = dist.get_world_size(), dist.get_rank()
    data = iter([make(step * n + rank) for step in range(n_steps + 8)])
    return parallel, pipeline, [float(pipeline.progress(data)[0]) for _ in range(n_steps)]


def served_histories():
    """(vocabulary, histories of users who have not been trained on, the right item's row of each, their rows)."""
    item_ids = np.arange(100, 100 + V)
    rows = np.random.default_rng(9).integers(0, V, (U, L))
    times = pd.Timestamp("2024-01-01", tz="UTC") + pd.to_timedelta(np.arange(U * L), "s")
    frame = {"user_id": np.repeat(np.arange(U), L), "item_id": item_ids[rows.ravel()], "timestamp": times}
    vocabulary = bseq.Vocabulary(item_ids, np.ones(V, np.int64))
    events = bseq.Events.from_frame(pd.DataFrame(frame))
    return vocabulary, bseq.Sequences.from_events(events, vocabulary), (rows[:, -1] + 1) % V + 1, rows + 1


def published(host, store):
    """Publish ``served_histories``; the right item's row of each user, and the rows of her events."""
    vocabulary, histories, right, rows = served_histories()
    bseq.publish(host, store, histories=histories, vocabulary=vocabulary, trained_until="2024-02-01T00:00Z")
    return right, rows


def top_of_store(store):
    """Rows of the ten best items of each user, int64 [U, 10]."""
    hits = bseq.Retriever.open(store).retrieve(list(range(U)), k=10, exclude="none")
    return hits["item_id"].to_numpy().reshape(U, 10) - 99


def hit(top, right):
    """hit@10."""
    return float((top == right[:, None]).any(axis=1).mean())


def compared(parallel, pipeline, losses, store, top_of_host):
    """{"host": hit@10, "store": hit@10, ...}; every process has the host's figure, the first one that of the store.

    ``top_of_host``: rows of histories [U, L] -> rows of the ten best items [U, 10] by the host's own scores.
    """
    right, rows = published(parallel, store)
    n_pipelined = len(pipeline._pipelined_modules)
    pipeline.detach()
    theirs = top_of_host(rows)
    figures = {"host": hit(theirs, right), "n_pipelined": n_pipelined, "losses": losses}
    if dist.get_rank() > 0:
        return figures
    ours = top_of_store(store)
    alike = np.mean([len(set(one) & set(other)) / 10 for one, other in zip(theirs, ours, strict=True)])
    return figures | {"store": hit(ours, right), "alike": float(alike)}


def check(figures, n_pipelined):
    """The store finds what the host finds, and both find what is right."""
    assert figures["store"] == EQUAL(figures["host"], abs=1e-3)
    assert figures["alike"] > 0.995  # equal scores may change places
    assert figures["host"] > 0.6  # .25 by chance
    assert figures["n_pipelined"] == n_pipelined


def as_a_process(work):
    """Do ``work(folder)``, which gives a list of figures, as one of several processes: FOLDER RANK WORLD_SIZE."""
    folder, rank, size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
    (folder / f"figures_{rank}.json").write_text(json.dumps(work(folder)), encoding="utf-8")
    dist.barrier()
    os._exit(0)  # batches ahead are on their way: taking the processes down in order can abort in torch's threads


def on_two_processes(script, folder, timeout=200):
    """(figures of the first process, those of the second) of a script that ends in ``as_a_process``."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, str(script), str(folder), str(rank), "2"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=timeout)[0].decode() for process in running]
    finally:  # one that waits for the other
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], "\n".join(said)[-4000:]
    return tuple(json.loads((folder / f"figures_{rank}.json").read_text()) for rank in range(2))


@pytest.fixture(autouse=True, scope="module")
def one_process():
    """A process group of this process alone, and one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()
    torch.set_num_threads(before)
