"""Rankers of the shape of TorchRec's golden training, and a sequence host: trained, published, searched.

``python ranker_job.py FOLDER RANK WORLD_SIZE`` does it in several processes. The rule of the data: a user goes on to
the item with the next number, and clicks if her latest item has an even one.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from bseq_dlrm import DLRMInterestTrain, DLRMWithInterest, InterestBatch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import distributed as dist
from torch import nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel, TrainPipelineSparseDist
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.models.deepfm import SimpleDeepFMNN
from torchrec.models.dlrm import DLRM_DCN, DLRM_Projection
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

import bseq_plugin as bseq

DIM, V, U, L, N_ADS, N_DENSE, N_NEGATIVES = 16, 40, 120, 4, 20, 3, 2
ITEM_KEYS = ("target", "negative")
OPTIMIZERS = {
    "sgd": {"optimizer": EmbOptimType.EXACT_SGD, "learning_rate": 10.0},
    "adagrad": {"optimizer": EmbOptimType.EXACT_ADAGRAD, "learning_rate": 0.3},
    "row_wise_adagrad": {"optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD, "learning_rate": 0.3},
}


def make_host(kind, device="meta"):
    configs = [
        EmbeddingBagConfig(name=f"{key}_table", embedding_dim=DIM, num_embeddings=rows, feature_names=[key])
        for key, rows in {"ad": N_ADS, "place": 5}.items()
    ]
    bags = EmbeddingBagCollection(tables=configs, device=torch.device(device))
    if kind is SimpleDeepFMNN:
        return SimpleDeepFMNN(N_DENSE, bags, 16, 8)
    if kind is DLRM_DCN:
        return DLRM_DCN(bags, N_DENSE, [16, DIM], [16, 1], dcn_num_layers=2, dcn_low_rank_dim=4)
    if kind is DLRM_Projection:
        return DLRM_Projection(bags, N_DENSE, [16, DIM], [16, 1], [3 * DIM, 2 * DIM], [3 * DIM, 2 * DIM])
    return kind(bags, N_DENSE, [16, DIM], [16, 1])


class MaskedItemHost(nn.Module):
    """A host of the shape of TorchRec's bert4rec, without tables of its own: it wires encoders in by itself."""

    def attach_interest(self, interest, frozen):
        return NextItems(interest)


class NextItems(nn.Module):
    """In-batch softmax of what each user went on to, scored with the encoder's own rows."""

    def __init__(self, interest):
        super().__init__()
        self.encoder, self.loss_fn = interest, InBatch()

    def forward(self, batch):
        interest, vectors = self.encoder.interest_and_items(batch.history)
        loss = self.loss_fn(interest["user_interest"], vectors["target"], batch.history)
        return loss, (loss.detach(), batch.labels)


class InBatch(nn.Module):
    def forward(self, interest_BI, target_BD, history):
        interest_BKD = interest_BI.view(len(target_BD), -1, target_BD.shape[1])
        logits_BB = torch.einsum("bkd,nd->bkn", interest_BKD, target_BD).amax(dim=1)
        ids_B = history["target"].values()
        same = (ids_B[:, None] == ids_B) & ~torch.eye(len(ids_B), dtype=torch.bool)
        return nn.functional.cross_entropy(logits_BB.masked_fill(same, float("-inf")), torch.arange(len(ids_B)))


def make_encoder(device="meta", n_interests=1, name="causal", item_keys=ITEM_KEYS, **more):
    several = {"interests": {"kind": "several", "n": n_interests}, "objective": {"kind": "prefix"}}
    recipe = bseq.Recipe(
        encoder={"name": name, "max_length": L, "dropout": 0.0, "n_blocks": 1},
        vectors={"dim": DIM},
        events={"features": ()},
        **(several if n_interests > 1 else {}),
    )
    return bseq.SequenceInterestEncoder(recipe, V, device=device, item_keys=item_keys, **more)


def batch(seed, n=128, event="event", item_keys=ITEM_KEYS):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, L + 1, (n,), generator=generator)
    items = torch.randint(1, V + 1, (int(lengths.sum()),), generator=generator)
    latest = items[lengths.cumsum(0) - 1]
    negatives = torch.randint(1, V + 1, (n * N_NEGATIVES,), generator=generator)
    values = {event: items, "target": latest % V + 1, "negative": negatives}
    counts = {event: lengths, "target": torch.ones_like(lengths), "negative": torch.full((n,), N_NEGATIVES)}
    keys = [event, *item_keys]
    history = KeyedJaggedTensor(
        keys, torch.cat([values[key] for key in keys]), lengths=torch.cat([counts[key] for key in keys])
    )
    sparse = torch.cat([torch.randint(0, rows, (n,), generator=generator) for rows in (N_ADS, 5)])
    sparse = KeyedJaggedTensor(["ad", "place"], sparse, lengths=torch.ones(2 * n, dtype=torch.int64))
    return InterestBatch(torch.randn(n, N_DENSE, generator=generator), sparse, history, (latest % 2 == 0).float())


def train(task, sharding="row_wise", optimizer="row_wise_adagrad", n_steps=60, make=batch):
    """Return the host under DMP, its pipeline attached and with steps left, and the losses."""
    fused, n, rank = OPTIMIZERS[optimizer], dist.get_world_size(), dist.get_rank()
    sharders = [EmbeddingCollectionSharder(fused_params=fused), EmbeddingBagCollectionSharder(fused_params=fused)]
    of_bags = "table_wise" if sharding == "row_wise" else sharding  # TorchRec's bags have no row_wise on a CPU
    shardings = {"item": sharding, "ad_table": of_bags, "place_table": of_bags}
    constraints = {
        name: ParameterConstraints(sharding_types=[kind], min_partition=8) for name, kind in shardings.items()
    }
    topology = Topology(world_size=n, compute_device="cpu")
    plan = EmbeddingShardingPlanner(topology=topology, constraints=constraints).collective_plan(task.train(), sharders)
    parallel = DistributedModelParallel(task, device=torch.device("cpu"), plan=plan, sharders=sharders)
    dense = dict(in_backward_optimizer_filter(parallel.named_parameters()))
    dense = {name: parameter for name, parameter in dense.items() if parameter.requires_grad}
    adam = KeyedOptimizerWrapper(dense, lambda parameters: torch.optim.Adam(parameters, lr=1e-2))
    pipeline = TrainPipelineSparseDist(
        parallel, CombinedOptimizer([parallel.fused_optimizer, adam]), torch.device("cpu")
    )
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


@torch.no_grad()
def top_of_host(encoder, rows):
    """The ten best items of each user by the host's own scores, int64 [U, 10]: exact search, one look-up."""
    every = np.arange(1, V + 1)
    lengths = np.concatenate([np.full(U, L), [V], np.zeros(U - 1), np.zeros(U)]).astype(np.int64)
    values = torch.from_numpy(np.concatenate([rows.ravel(), every]))
    features = KeyedJaggedTensor(["event", *ITEM_KEYS], values, lengths=torch.from_numpy(lengths))
    interest, vectors = encoder.eval().interest_and_items(features)
    interest_BKD = interest["user_interest"].view(U, -1, DIM)
    scores = torch.einsum("bkd,nd->bkn", interest_BKD, vectors["target"]).amax(dim=1)
    return scores.topk(10).indices.numpy() + 1


def top_of_store(store):
    hits = bseq.Retriever.open(store).retrieve(list(range(U)), k=10, exclude="none")
    return hits["item_id"].to_numpy().reshape(U, 10) - 99


def hit(top, right):
    return float((top == right[:, None]).any(axis=1).mean())


def make_task(kind, n_interests=1):
    """(the task, its encoder)."""
    if kind is MaskedItemHost:
        task = bseq.attach(MaskedItemHost(), make_encoder(n_interests=n_interests, name="masked"))
        return task, task.encoder
    ranker = DLRMWithInterest(make_host(kind), make_encoder(n_interests=n_interests))
    return DLRMInterestTrain(ranker, next_item_weight=0.5), ranker.interest


def trained_and_published(store, kind, sharding, optimizer, n_interests=1):
    """{"host": hit@10, "store": hit@10, ...}; every process has the host's figure, the first one that of the store."""
    torch.manual_seed(0)
    task, encoder = make_task(kind, n_interests)
    parallel, pipeline, losses = train(task, sharding, optimizer)
    vocabulary, histories, right, rows = served_histories()
    bseq.publish(parallel, store, histories=histories, vocabulary=vocabulary, trained_until="2024-02-01T00:00Z")
    n_pipelined = len(pipeline._pipelined_modules)
    pipeline.detach()
    theirs = top_of_host(encoder, rows)
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
        trained_and_published(folder / "dcn", DLRM_DCN, "row_wise", "row_wise_adagrad"),
        trained_and_published(folder / "own", MaskedItemHost, "column_wise", "adagrad", 3),
    ]
    (folder / f"figures_{rank}.json").write_text(json.dumps(done), encoding="utf-8")
    dist.barrier()
    os._exit(0)  # batches ahead are on their way: taking the processes down in order can abort in torch's threads


if __name__ == "__main__":
    main()
