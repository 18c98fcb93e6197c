"""A two-tower of the shape of TorchRec's retrieval example: trained under DMP and the pipeline, published, searched.

``python two_tower_job.py FOLDER RANK WORLD_SIZE`` does it in several processes. The rule of the data: the right
candidate of a user is the item with the next number.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from bseq_two_tower import CandidateLoss, InBatchSoftmax, InterestTwoTower, InterestTwoTowerTrain, TwoTowerBatch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import distributed as dist
from torch import nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel, TrainPipelineSparseDist
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.modules.mlp import MLP
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

import bseq_plugin as bseq

DIM, WIDTH, V, U, L, N_COUNTRIES, N_CANDIDATES = 16, 16, 40, 120, 4, 5, 4
LOSSES = {"one": CandidateLoss, "several": CandidateLoss, "in_batch": InBatchSoftmax}
OPTIMIZERS = {
    "sgd": {"optimizer": EmbOptimType.EXACT_SGD, "learning_rate": 10.0},
    "adagrad": {"optimizer": EmbOptimType.EXACT_ADAGRAD, "learning_rate": 0.3},
    "row_wise_adagrad": {"optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD, "learning_rate": 0.3},
}


class RetrievalHost(nn.Module):
    """The parts of TorchRec's example; ``features`` are the query's, the user's id first."""

    def __init__(self, device="cpu", features=("user",)):
        super().__init__()
        rows = {"user": U, "country": N_COUNTRIES}
        rows = {name: rows[name] for name in features} | {"item": V + 1}
        configs = [
            EmbeddingBagConfig(name=f"t_{key}", embedding_dim=DIM, num_embeddings=n, feature_names=[key])
            for key, n in rows.items()
        ]
        self.ebc = EmbeddingBagCollection(tables=configs, device=torch.device(device))
        self._feature_names_query, self._candidate_feature_names = list(features), ["item"]
        self.query_proj, self.candidate_proj = MLP(DIM * len(features), [WIDTH]), MLP(DIM, [32, WIDTH])

    def forward(self, kjt):
        found = self.ebc(kjt)
        query = torch.cat([found[name] for name in self._feature_names_query], dim=1)
        return self.query_proj(query), self.candidate_proj(found["item"])


def make_encoder(device="meta", n_interests=1):
    several = {"interests": {"kind": "several", "n": n_interests}, "objective": {"kind": "prefix"}}
    recipe = bseq.Recipe(
        encoder={"name": "causal", "max_length": L, "dropout": 0.0, "n_blocks": 1},
        vectors={"dim": DIM},
        events={"features": ()},
        **(several if n_interests > 1 else {}),
    )
    return bseq.SequenceInterestEncoder(recipe, V, device=device)


def ids(key, values):
    return KeyedJaggedTensor([key], values, lengths=torch.ones_like(values))


def batch(seed, kind, n=128):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, L + 1, (n,), generator=generator)
    items = torch.randint(1, V + 1, (int(lengths.sum()),), generator=generator)
    right = items[lengths.cumsum(0) - 1] % V + 1
    others = torch.randint(1, V + 1, (n, N_CANDIDATES if kind == "several" else 1), generator=generator)
    chosen = torch.randint(0, 2, others.shape, generator=generator) == 1
    candidates = right[:, None] if kind == "in_batch" else torch.where(chosen, right[:, None], others)
    labels = (candidates == right[:, None]).float()
    country = ids("country", torch.randint(0, N_COUNTRIES, (n,), generator=generator))
    labels = labels if kind == "several" else labels[:, 0]
    history = KeyedJaggedTensor(["event"], items, lengths=lengths)
    return TwoTowerBatch(history, ids("item", candidates.flatten()), labels, country)


def pipelined(task, sharding, optimizer):
    """The task under DMP, and its pipeline."""
    fused = OPTIMIZERS[optimizer]
    sharders = [EmbeddingCollectionSharder(fused_params=fused), EmbeddingBagCollectionSharder(fused_params=fused)]
    of_bags = "table_wise" if sharding == "row_wise" else sharding  # TorchRec's bags have no row_wise on a CPU
    shardings = {"item": sharding, "t_item": of_bags, "t_country": of_bags}
    constraints = {
        name: ParameterConstraints(sharding_types=[kind], min_partition=8) for name, kind in shardings.items()
    }
    topology = Topology(world_size=dist.get_world_size(), compute_device="cpu")
    plan = EmbeddingShardingPlanner(topology=topology, constraints=constraints).collective_plan(task, sharders)
    parallel = DistributedModelParallel(task, device=torch.device("cpu"), plan=plan, sharders=sharders)
    dense = dict(in_backward_optimizer_filter(parallel.named_parameters()))
    dense = {name: parameter for name, parameter in dense.items() if parameter.requires_grad}
    adam = KeyedOptimizerWrapper(dense, lambda parameters: torch.optim.Adam(parameters, lr=1e-2))
    both = CombinedOptimizer([parallel.fused_optimizer, adam])
    return parallel, TrainPipelineSparseDist(parallel, both, torch.device("cpu"))


def train(task, sharding, optimizer, kind, n_steps):
    """Return the host under DMP, its pipeline attached and with steps left, and the losses."""
    parallel, pipeline = pipelined(task.train(), sharding, optimizer)
    n, rank = dist.get_world_size(), dist.get_rank()
    data = iter([batch(step * n + rank, kind) for step in range(n_steps + 8)])
    return parallel, pipeline, [float(pipeline.progress(data)[0]) for _ in range(n_steps)]


def served_histories():
    """(vocabulary, histories of users who have not been trained on, the right item's row of each)."""
    item_ids = np.arange(100, 100 + V)
    rows = np.random.default_rng(9).integers(0, V, (U, L))
    times = pd.Timestamp("2024-01-01", tz="UTC") + pd.to_timedelta(np.arange(U * L), "s")
    frame = {"user_id": np.repeat(np.arange(U), L), "item_id": item_ids[rows.ravel()], "timestamp": times}
    vocabulary = bseq.Vocabulary(item_ids, np.ones(V, np.int64))
    events = bseq.Events.from_frame(pd.DataFrame(frame))
    return vocabulary, bseq.Sequences.from_events(events, vocabulary), (rows[:, -1] + 1) % V + 1, rows + 1


@torch.no_grad()
def top_of_host(two_tower, rows):
    """The ten best items of each user by the host's own towers, int64 [U, 10]: exact search."""
    lengths = torch.full((U,), L)
    query = two_tower.eval().query(KeyedJaggedTensor(["event"], torch.from_numpy(rows.ravel()), lengths=lengths))
    return (query @ two_tower.candidate(ids("item", torch.arange(1, V + 1))).T).topk(10).indices.numpy() + 1


def top_of_store(store):
    hits = bseq.Retriever.open(store).retrieve(list(range(U)), k=10, exclude="none")
    return hits["item_id"].to_numpy().reshape(U, 10) - 99


def hit(top, right):
    return float((top == right[:, None]).any(axis=1).mean())


def trained_and_published(store, sharding, optimizer, kind, n_steps=60, n_interests=1):
    """{"host": hit@10, "store": hit@10, ...}; every process has the host's figure, the first one that of the store."""
    torch.manual_seed(0)
    model = InterestTwoTower(RetrievalHost("meta"), make_encoder(n_interests=n_interests))
    parallel, pipeline, losses = train(InterestTwoTowerTrain(model, LOSSES[kind]()), sharding, optimizer, kind, n_steps)
    vocabulary, histories, right, rows = served_histories()
    bseq.publish(parallel, store, histories=histories, vocabulary=vocabulary, trained_until="2024-02-01T00:00Z")
    n_pipelined = len(pipeline._pipelined_modules)
    pipeline.detach()
    theirs = top_of_host(model, rows)
    figures = {"host": hit(theirs, right), "n_pipelined": n_pipelined, "losses": losses}
    if dist.get_rank() > 0:
        return figures
    ours = top_of_store(store)
    alike = np.mean([len(set(one) & set(other)) / 10 for one, other in zip(theirs, ours, strict=True)])
    return figures | {"store": hit(ours, right), "alike": float(alike)}


def main():
    folder, rank, size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
    done = [
        trained_and_published(folder / f"store_{sharding}", sharding, optimizer, "in_batch")
        for sharding, optimizer in (("row_wise", "row_wise_adagrad"), ("column_wise", "adagrad"))
    ]
    (folder / f"figures_{rank}.json").write_text(json.dumps(done), encoding="utf-8")
    dist.barrier()
    os._exit(0)  # batches ahead are on their way: taking the processes down in order can abort in torch's threads


if __name__ == "__main__":
    main()
