"""A ranker of your own with a sequence-interest encoder inside, under TorchRec's planner, sharding and pipeline.

    python examples/embed_in_torchrec.py

Shape letters: B users, D width. The data are random with one rule: a user who last saw an item with an even number
clicks any ad but every fourth; nobody else clicks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import Tensor, nn
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

N_ITEMS, N_ADS, DIM, N_USERS, N_STEPS = 60, 40, 16, 256, 100
MAX_LENGTH = 10


@dataclass
class ClickBatch(Pipelineable):
    """What a step reads. The history goes to the encoder as it is: rebuilding it would stop the pipelining."""

    sparse: KeyedJaggedTensor
    history: KeyedJaggedTensor
    clicked_B: Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> ClickBatch:
        return ClickBatch(
            self.sparse.to(device, non_blocking),
            self.history.to(device, non_blocking),
            self.clicked_B.to(device, non_blocking=non_blocking),
        )

    def record_stream(self, stream: torch.Stream) -> None:
        for value in (self.sparse, self.history, self.clicked_B):
            value.record_stream(stream)


class Ranker(nn.Module):
    """An ad's embedding and a user's interest, through two layers to a click."""

    def __init__(self, interest: bseq.SequenceInterestEncoder) -> None:
        super().__init__()
        ads = EmbeddingBagConfig(name="ad_table", embedding_dim=DIM, num_embeddings=N_ADS, feature_names=["ad"])
        self.sparse_arch = EmbeddingBagCollection(tables=[ads], device=torch.device("meta"))
        self.interest = interest
        self.over_arch = nn.Sequential(nn.Linear(2 * DIM, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, batch: ClickBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """(loss, outputs), what TorchRec's pipelines expect; ``progress`` gives back the outputs."""
        ad_BD = self.sparse_arch(batch.sparse)["ad"]
        interest_BD = self.interest(batch.history)["user_interest"]
        logits_B = self.over_arch(torch.cat([ad_BD, interest_BD], dim=1)).squeeze(1)
        loss = nn.functional.binary_cross_entropy_with_logits(logits_B, batch.clicked_B)
        return loss, {"loss": loss.detach(), "logits": logits_B.detach()}


def batches(n: int) -> Iterator[ClickBatch]:
    """Random users; row 0 of the item table stands for unknown items, so items are 1..N_ITEMS."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(n):
        lengths_B = torch.randint(1, MAX_LENGTH + 1, (N_USERS,), generator=generator)
        items_T = torch.randint(1, N_ITEMS + 1, (int(lengths_B.sum()),), generator=generator)
        ads_B = torch.randint(0, N_ADS, (N_USERS,), generator=generator)
        latest_B = items_T[lengths_B.cumsum(0) - 1]
        yield ClickBatch(
            KeyedJaggedTensor(["ad"], ads_B, lengths=torch.ones(N_USERS, dtype=torch.int64)),
            KeyedJaggedTensor(["event"], items_T, lengths=lengths_B),
            ((latest_B % 2 == 0) & (ads_B % 4 > 0)).float(),
        )


def sharded(model: Ranker, device: torch.device) -> tuple[DistributedModelParallel, CombinedOptimizer]:
    """Plan and shard both collections; table optimizers run inside backward, Adam has the rest."""
    fused = {"optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD, "learning_rate": 0.1}
    sharders = [EmbeddingCollectionSharder(fused_params=fused), EmbeddingBagCollectionSharder(fused_params=fused)]
    # data_parallel is left out: on CPU its look-up pools where an encoder needs one row an event
    constraints = {name: ParameterConstraints(sharding_types=["table_wise"]) for name in ("ad_table", "item")}
    topology = Topology(world_size=dist.get_world_size(), compute_device=device.type)
    plan = EmbeddingShardingPlanner(topology=topology, constraints=constraints).collective_plan(model, sharders)
    parallel = DistributedModelParallel(model, device=device, plan=plan, sharders=sharders)
    bseq.check_sharded(parallel)  # raises if EmbeddingCollectionSharder is left out above, and says what to do
    dense = dict(in_backward_optimizer_filter(parallel.named_parameters()))
    adam = KeyedOptimizerWrapper(dense, lambda parameters: torch.optim.Adam(parameters, lr=1e-2))
    return parallel, CombinedOptimizer([parallel.fused_optimizer, adam])


def main() -> None:
    torch.manual_seed(0)
    # one process; with torchrun it is dist.init_process_group("gloo"), or "nccl"
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    device = torch.device("cpu")
    recipe = bseq.Recipe(
        encoder={"name": "causal", "max_length": MAX_LENGTH, "dropout": 0.0},
        vectors={"dim": DIM},
        events={"features": ()},
    )
    model, optimizer = sharded(Ranker(bseq.SequenceInterestEncoder(recipe, N_ITEMS, device="meta")), device)
    pipeline = TrainPipelineSparseDist(model, optimizer, device, execute_all_batches=True)
    data = batches(N_STEPS)
    losses = []
    for step in range(1, N_STEPS + 1):
        losses.append(float(pipeline.progress(data)["loss"]))
        if step % 20 == 0:
            print(f"step {step:>3}  loss {sum(losses[-20:]) / 20:.4f}")
    # the encoder's tables and our own; 0 would mean that look-ups no longer overlap with computing
    print(f"pipelined modules: {len(pipeline._pipelined_modules)}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
