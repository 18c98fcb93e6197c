"""The encoder as user tower: the candidate tower stays the host's, and the task trains under DMP and the pipeline."""

from __future__ import annotations

import bseq_two_tower
import pytest
import torch
from bseq_two_tower import InterestTwoTowerTrain, TwoTowerBatch
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

DIM, WIDTH, N_ITEMS, N_USERS, MAX_LENGTH = 16, 8, 12, 50, 5


class Host(nn.Module):
    """The parts by which TorchRec's retrieval example is known."""

    def __init__(self, device="cpu"):
        super().__init__()
        rows = {"user": N_USERS, "item": N_ITEMS + 1}
        configs = [
            EmbeddingBagConfig(name=f"t_{key}", embedding_dim=DIM, num_embeddings=n, feature_names=[key])
            for key, n in rows.items()
        ]
        self.ebc = EmbeddingBagCollection(tables=configs, device=torch.device(device))
        self._feature_names_query, self._candidate_feature_names = ["user"], ["item"]
        self.query_proj, self.candidate_proj = MLP(DIM, [WIDTH]), MLP(DIM, [WIDTH])

    def forward(self, kjt):
        looked_up = self.ebc(kjt)
        return self.query_proj(looked_up["user"]), self.candidate_proj(looked_up["item"])


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def manager():
    found = bseq.PluginManager()
    found.register(bseq_two_tower, "two_tower")
    return found


def make_encoder(device="cpu"):
    recipe = bseq.Recipe(
        encoder={"name": "mean", "max_length": MAX_LENGTH, "dropout": 0.0},
        vectors={"dim": DIM},
        events={"features": ()},
    )
    return bseq.SequenceInterestEncoder(recipe, N_ITEMS, device=device)


def batch(n=128, seed=0):
    """A candidate is chosen if its number is as even or odd as that of the items of the history."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, MAX_LENGTH + 1, (n,), generator=generator)
    parity = torch.randint(0, 2, (n,), generator=generator)
    half = torch.randint(0, N_ITEMS // 2, (int(lengths.sum()),), generator=generator)
    items = 2 * half + 2 - parity.repeat_interleave(lengths)
    candidate = torch.randint(1, N_ITEMS + 1, (n,), generator=generator)
    return TwoTowerBatch(
        KeyedJaggedTensor(["event"], items, lengths=lengths),
        KeyedJaggedTensor(["item"], candidate, lengths=torch.ones(n, dtype=torch.int64)),
        (candidate % 2 == parity).float(),
    )


def test_the_candidate_tower_is_the_hosts(manager):
    torch.manual_seed(0)
    host, data = Host(), batch()
    model = bseq.attach(host, make_encoder(), manager=manager)
    query, candidate = model(data.history, data.candidates)
    both = KeyedJaggedTensor.concat(
        [
            KeyedJaggedTensor(
                ["user"], torch.zeros(128, dtype=torch.int64), lengths=torch.ones(128, dtype=torch.int64)
            ),
            data.candidates,
        ]
    )
    torch.testing.assert_close(candidate, host(both)[1])
    torch.testing.assert_close(query, model.query_proj(model.interest(data.history)["user_interest"]))
    assert model.candidate_ebc.embedding_bags["t_item"] is host.ebc.embedding_bags["t_item"]
    assert [config.name for config in model.candidate_ebc.embedding_bag_configs()] == ["t_item"]


@pytest.mark.parametrize("frozen", [False, True])
def test_it_trains_under_dmp_and_the_sparse_pipeline(manager, frozen):
    torch.manual_seed(0)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        device = torch.device("cpu")
        model = bseq.attach(Host("meta"), make_encoder("meta"), frozen=frozen, manager=manager)
        task = InterestTwoTowerTrain(model).train()
        fused = {"optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD, "learning_rate": 0.3}
        sharders = [EmbeddingCollectionSharder(fused_params=fused), EmbeddingBagCollectionSharder(fused_params=fused)]
        constraints = {name: ParameterConstraints(sharding_types=["table_wise"]) for name in ("t_item", "item")}
        topology = Topology(world_size=1, compute_device="cpu")
        plan = EmbeddingShardingPlanner(topology=topology, constraints=constraints).collective_plan(task, sharders)
        parallel = DistributedModelParallel(task, device=device, plan=plan, sharders=sharders)
        dense = dict(in_backward_optimizer_filter(parallel.named_parameters()))
        dense = {name: p for name, p in dense.items() if p.requires_grad}
        adam = KeyedOptimizerWrapper(dense, lambda parameters: torch.optim.Adam(parameters, lr=1e-2))
        pipeline = TrainPipelineSparseDist(parallel, CombinedOptimizer([parallel.fused_optimizer, adam]), device)
        data = iter([batch(seed=seed) for seed in range(80)])
        losses = [float(pipeline.progress(data)[0]) for _ in range(80)]
        assert len(pipeline._pipelined_modules) == 2
        assert all(("interest_encoder" in name or ".interest." in name) is False for name in dense) or not frozen
        if not frozen:
            assert sum(losses[-5:]) / 5 < 0.3  # 0.69 for a coin
    finally:
        dist.destroy_process_group()


def test_other_hosts_and_odd_towers_are_refused(manager):
    with pytest.raises(
        bseq.UsageError, match=r"no plugin attaches an encoder to a Linear; those that attach: \['two_tower'\]"
    ):
        bseq.attach(nn.Linear(2, 2), make_encoder(), manager=manager)
    host = Host()
    host.candidate_proj = nn.Identity()
    with pytest.raises(bseq.UsageError, match="candidate_proj has no linear layer"):
        bseq.attach(host, make_encoder(), manager=manager)
