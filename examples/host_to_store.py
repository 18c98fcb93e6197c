"""A model of your own trains the encoder; what it has trained answers from a store.

    python examples/host_to_store.py
    torchrun --nproc-per-node 2 examples/host_to_store.py

The data are random with one rule: after item i comes item i + 1. Shape letters: B users, D width, V items.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import Tensor, nn
from torch import distributed as dist
from torchrec import KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel, TrainPipelineSparseDist
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

import bseq_plugin as bseq

N_ITEMS, DIM, MAX_LENGTH, N_USERS, N_STEPS = 500, 32, 10, 256, 200


class Host(nn.Module):
    """Your model. Its loss asks for a target a user; the other users' targets are the negatives."""

    def __init__(self, interest: bseq.SequenceInterestEncoder) -> None:
        super().__init__()
        self.interest = interest

    def forward(self, batch: KeyedJaggedTensor) -> tuple[Tensor, Tensor]:
        interest, items = self.interest.interest_and_items(batch)  # one look-up, which the pipeline starts ahead
        scores_BB = interest[bseq.USER_INTEREST] @ items["target"].T
        own_B = torch.arange(scores_BB.shape[0], device=scores_BB.device)
        loss = nn.functional.cross_entropy(scores_BB, own_B)
        return loss, loss.detach()


def batches(n: int, seed: int) -> Iterator[KeyedJaggedTensor]:
    """Histories of rows of the item table (row 0 stands for unknown items), and the item that comes next."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n):
        lengths_B = torch.randint(1, MAX_LENGTH + 1, (N_USERS,), generator=generator)
        items_T = torch.randint(1, N_ITEMS + 1, (int(lengths_B.sum()),), generator=generator)
        targets_B = items_T[lengths_B.cumsum(0) - 1] % N_ITEMS + 1
        lengths = torch.cat([lengths_B, torch.ones_like(targets_B)])
        yield KeyedJaggedTensor(["event", "target"], torch.cat([items_T, targets_B]), lengths=lengths)


def sharded(host: Host, device: torch.device) -> tuple[DistributedModelParallel, CombinedOptimizer]:
    fused = {"optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD, "learning_rate": 0.2}
    sharders = [EmbeddingCollectionSharder(fused_params=fused)]  # the encoder's tables are in an EmbeddingCollection
    topology = Topology(world_size=dist.get_world_size(), compute_device=device.type)
    constraints = {"item": ParameterConstraints(sharding_types=["row_wise"])}
    plan = EmbeddingShardingPlanner(topology=topology, constraints=constraints).collective_plan(host, sharders)
    parallel = DistributedModelParallel(host, device=device, plan=plan, sharders=sharders)
    dense = dict(in_backward_optimizer_filter(parallel.named_parameters()))
    adam = KeyedOptimizerWrapper(dense, lambda parameters: torch.optim.Adam(parameters, lr=3e-3))
    return parallel, CombinedOptimizer([parallel.fused_optimizer, adam])


def log(item_ids: np.ndarray) -> tuple[bseq.Events, np.ndarray]:
    """Five events of each of 300 users, and the item that comes next."""
    rows_UL = np.random.default_rng(7).integers(0, N_ITEMS, (300, 5))
    users = np.repeat(np.arange(300), 5)
    times = pd.Timestamp("2026-01-01", tz="UTC") + pd.to_timedelta(np.arange(len(users)), "min")
    frame = pd.DataFrame({"user_id": users, "item_id": item_ids[rows_UL.ravel()], "timestamp": times})
    return bseq.Events.from_frame(frame), item_ids[(rows_UL[:, -1] + 1) % N_ITEMS]


def main() -> None:
    torch.manual_seed(0)
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    else:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    device = torch.device("cpu")
    recipe = bseq.Recipe(
        encoder={"name": "causal", "max_length": MAX_LENGTH, "dropout": 0.0, "n_blocks": 1},
        vectors={"dim": DIM},
        events={"features": ()},
    )
    encoder = bseq.SequenceInterestEncoder(recipe, N_ITEMS, item_keys=["target"], device="meta")
    host, optimizer = sharded(Host(encoder), device)
    pipeline = TrainPipelineSparseDist(host, optimizer, device)
    data = batches(N_STEPS, dist.get_rank())
    losses = [float(pipeline.progress(data)) for _ in range(N_STEPS)]

    # Items in the order of their rows; users' histories in these rows.
    item_ids = np.arange(N_ITEMS) * 10 + 7
    vocabulary = bseq.Vocabulary(item_ids, np.ones(N_ITEMS, np.int64), ())
    events, next_items = log(item_ids)
    histories = bseq.Sequences.from_events(events, vocabulary)
    version = bseq.publish(
        host, "host_store", histories=histories, vocabulary=vocabulary, trained_until="2026-02-01T00:00Z"
    )
    if dist.get_rank() == 0:
        print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}, pipelined modules: {len(pipeline._pipelined_modules)}")
        hits = bseq.Retriever.open("host_store").retrieve(np.arange(300), k=10)
        found = hits.merge(pd.DataFrame({"user_id": np.arange(300), "item_id": next_items}))
        print(f"published {version}; the store has the next item of {len(found) / 300:.0%} of 300 users among 10")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
