"""A step of a host with the encoder inside, against the host without it plus the encoder alone.

    make bench-host_step
    make bench-host_step ARGS="--rounds 30"

The host is a click model of the shape of TorchRec's DLRM example: 20 tables under an EmbeddingBagCollection, 13 dense
features, an over arch of three layers. Three models take turns in one run, a few steps each, on one process and on two:
the host, the encoder with a loss of its own over in-batch negatives, and the host with the encoder and both losses. All
are under DistributedModelParallel and TrainPipelineSparseDist. Writes benchmarks/results/host_step.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import Tensor, multiprocessing, nn
from torch import distributed as dist
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel, TrainPipelineSparseDist
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.streamable import Pipelineable

import bseq_plugin as bseq
from benchmarks import harness

N_TABLES, N_ROWS, N_ITEMS, DIM, MAX_LENGTH, BATCH = 20, 20_000, 50_000, 64, 50, 1024
STEPS, ROUNDS, AIM = 5, 15, 1.1
CPU = torch.device("cpu")


@dataclass
class Batch(Pipelineable):
    """What a step reads; the history goes to the encoder as it is."""

    dense: Tensor
    sparse: KeyedJaggedTensor
    history: KeyedJaggedTensor
    clicked: Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> Batch:
        """Everything is on the CPU."""
        return self

    def record_stream(self, stream: torch.Stream) -> None:
        """There is one stream."""


class Host(nn.Module):
    """Clicks, the next item, or both."""

    def __init__(self, clicks: bool, interest: bool) -> None:
        super().__init__()
        self.clicks = clicks
        if clicks:
            rows = {"embedding_dim": DIM, "num_embeddings": N_ROWS}
            tables = [EmbeddingBagConfig(name=f"t{n}", feature_names=[f"f{n}"], **rows) for n in range(N_TABLES)]
            self.sparse = EmbeddingBagCollection(tables=tables, device=torch.device("meta"))
            width = 13 + N_TABLES * DIM + (DIM if interest else 0)
            self.over = nn.Sequential(
                nn.Linear(width, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 1)
            )
        recipe = bseq.Recipe(
            encoder={"name": "causal", "max_length": MAX_LENGTH}, vectors={"dim": DIM}, events={"features": ()}
        )
        self.interest = (
            bseq.SequenceInterestEncoder(recipe, N_ITEMS, item_keys=["target"], device="meta") if interest else None
        )

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the loss twice."""
        losses, parts = [], [batch.dense]
        if self.clicks:
            parts.append(self.sparse(batch.sparse).values())
        if self.interest is not None:
            interest, items = self.interest.interest_and_items(batch.history)
            vectors_BD = interest["user_interest"]
            parts.append(vectors_BD)
            own_B = torch.arange(BATCH)
            losses.append(nn.functional.cross_entropy(vectors_BD @ items["target"].T, own_B))
        if self.clicks:
            logits_B = self.over(torch.cat(parts, 1)).squeeze(1)
            losses.append(nn.functional.binary_cross_entropy_with_logits(logits_B, batch.clicked))
        loss = sum(losses[1:], losses[0])
        return loss, loss.detach()


def batches(rank: int) -> Iterator[Batch]:
    """Ten random batches, again and again."""
    generator = torch.Generator().manual_seed(rank)
    made = []
    for _ in range(10):
        ids = torch.randint(0, N_ROWS, (N_TABLES * BATCH,), generator=generator)
        lengths = torch.randint(1, MAX_LENGTH + 1, (BATCH,), generator=generator)
        items = torch.randint(1, N_ITEMS + 1, (int(lengths.sum()) + BATCH,), generator=generator)
        history = KeyedJaggedTensor(["event", "target"], items, lengths=torch.cat([lengths, torch.ones_like(lengths)]))
        sparse = KeyedJaggedTensor([f"f{n}" for n in range(N_TABLES)], ids, lengths=torch.ones_like(ids))
        dense = torch.randn(BATCH, 13, generator=generator)
        made.append(Batch(dense, sparse, history, torch.randint(0, 2, (BATCH,), generator=generator).float()))
    while True:
        yield from made


def pipeline(clicks: bool, interest: bool) -> TrainPipelineSparseDist:
    """A sharded model under the pipeline."""
    torch.manual_seed(0)
    host = Host(clicks, interest)
    fused = {"optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD, "learning_rate": 0.05}
    sharders = [EmbeddingCollectionSharder(fused_params=fused), EmbeddingBagCollectionSharder(fused_params=fused)]
    constraints = {"item": ParameterConstraints(sharding_types=["row_wise"])}
    constraints |= {f"t{n}": ParameterConstraints(sharding_types=["table_wise"]) for n in range(N_TABLES)}
    topology = Topology(world_size=dist.get_world_size(), compute_device="cpu")
    plan = EmbeddingShardingPlanner(topology=topology, constraints=constraints).collective_plan(host, sharders)
    model = DistributedModelParallel(host, device=CPU, plan=plan, sharders=sharders)
    dense = dict(in_backward_optimizer_filter(model.named_parameters()))
    adam = KeyedOptimizerWrapper(dense, lambda parameters: torch.optim.Adam(parameters, lr=1e-3))
    return TrainPipelineSparseDist(model, CombinedOptimizer([model.fused_optimizer, adam]), CPU)


MODELS = {"host": (True, False), "encoder": (False, True), "both": (True, True)}


def measure(rank: int, size: int, rounds: int, folder: str) -> None:
    """Write the milliseconds of a step of each model, the median over rounds, and how many look-ups are pipelined."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // size))
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    made = {name: (pipeline(*parts), batches(rank)) for name, parts in MODELS.items()}
    taken: dict[str, list[float]] = {name: [] for name in MODELS}
    for turn in range(rounds + 1):
        for name, (one, data) in made.items():
            started = time.perf_counter()
            for _ in range(STEPS):
                one.progress(data)
            if turn:  # the first is to warm up
                taken[name].append((time.perf_counter() - started) / STEPS * 1e3)
    figures: dict[str, Any] = {name: statistics.median(times) for name, times in taken.items()}
    ratios = [both / (host + own) for host, own, both in zip(*taken.values(), strict=True)]
    figures["ratio"] = statistics.median(ratios)
    figures["pipelined"] = {name: len(one._pipelined_modules) for name, (one, _) in made.items()}
    if rank == 0:
        Path(folder, "figures.json").write_text(json.dumps(figures), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    """Measure on one process and on two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    rounds = parser.parse_args().rounds
    figures: dict[str, Any] = {}
    for size in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            multiprocessing.spawn(measure, (size, rounds, folder), nprocs=size)
            figures[f"{size} process"] = json.loads(Path(folder, "figures.json").read_text(encoding="utf-8"))
        told = figures[f"{size} process"]
        times = ", ".join(f"{name} {told[name]:.1f}" for name in MODELS)
        print(f"{size} process(es), ms a step of {BATCH} users each: {times}; pipelined {told['pipelined']}")
    claims = [harness.at_most(f"{name}: both / (host + encoder)", one["ratio"], AIM) for name, one in figures.items()]
    harness.show(claims, 40)
    harness.write("host_step", figures, claims)


if __name__ == "__main__":
    main()
