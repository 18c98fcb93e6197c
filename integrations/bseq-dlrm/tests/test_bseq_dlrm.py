"""The attached DLRM is the host until it is trained, and trains under DMP and the sparse pipeline."""

from __future__ import annotations

import bseq_dlrm
import pytest
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
from torchrec.models.dlrm import DLRM, DLRM_DCN, DLRM_Projection
from torchrec.modules.crossnet import LowRankCrossNet
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

import bseq_plugin as bseq

DIM, N_ITEMS, N_ADS, N_DENSE, MAX_LENGTH = 8, 30, 20, 3, 6


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def manager():
    found = bseq.PluginManager()
    found.register(bseq_dlrm, "dlrm")
    return found


@pytest.fixture(scope="module")
def process_group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def tables(device):
    keys = {"ad": N_ADS, "place": 5}
    configs = [
        EmbeddingBagConfig(name=f"{key}_table", embedding_dim=DIM, num_embeddings=rows, feature_names=[key])
        for key, rows in keys.items()
    ]
    return EmbeddingBagCollection(tables=configs, device=torch.device(device))


def make_host(kind, device="cpu"):
    torch.manual_seed(0)
    if kind is DLRM:
        return DLRM(tables(device), N_DENSE, [16, DIM], [16, 1])
    if kind is DLRM_DCN:
        return DLRM_DCN(tables(device), N_DENSE, [16, DIM], [16, 1], dcn_num_layers=2, dcn_low_rank_dim=4)
    return DLRM_Projection(tables(device), N_DENSE, [16, DIM], [16, 1], [3 * DIM, 2 * DIM], [3 * DIM, 2 * DIM])


def make_encoder(dim=DIM, device="cpu"):
    recipe = bseq.Recipe(
        encoder={"name": "causal", "max_length": MAX_LENGTH, "dropout": 0.5},
        vectors={"dim": dim},
        events={"features": ()},
    )
    return bseq.SequenceInterestEncoder(recipe, N_ITEMS, device=device)


def batch(n=64, seed=0):
    """Somebody who last saw an item with an even number clicks; nobody else does."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, MAX_LENGTH + 1, (n,), generator=generator)
    items = torch.randint(1, N_ITEMS + 1, (int(lengths.sum()),), generator=generator)
    sparse = torch.cat([torch.randint(0, rows, (n,), generator=generator) for rows in (N_ADS, 5)])
    return InterestBatch(
        torch.randn(n, N_DENSE, generator=generator),
        KeyedJaggedTensor(["ad", "place"], sparse, lengths=torch.ones(2 * n, dtype=torch.int64)),
        KeyedJaggedTensor(["event"], items, lengths=lengths),
        (items[lengths.cumsum(0) - 1] % 2 == 0).float(),
    )


@pytest.mark.parametrize("kind", [DLRM, DLRM_DCN, DLRM_Projection])
@pytest.mark.parametrize("dim", [DIM, 12])
def test_just_attached_it_gives_the_hosts_logits(kind, dim, manager):
    host, data = make_host(kind).eval(), batch()
    before = {name: value.clone() for name, value in host.state_dict().items()}
    ranker = bseq.attach(host, make_encoder(dim), manager=manager)
    assert isinstance(ranker, DLRMWithInterest)
    wanted = host(data.dense_features, data.sparse_features)
    torch.testing.assert_close(ranker(data.dense_features, data.sparse_features, data.history), wanted)
    for name, value in host.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def step(ranker, data, rate=0.1):
    optimizer = torch.optim.SGD([p for p in ranker.parameters() if p.requires_grad], lr=rate)
    loss, _ = DLRMInterestTrain(ranker)(data)
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def test_jointly_the_encoder_learns_and_frozen_it_stays(manager):
    for frozen in (False, True):
        encoder = make_encoder()
        before = [p.detach().clone() for p in encoder.parameters()]
        ranker = bseq.attach(make_host(DLRM), encoder, frozen=frozen, manager=manager).train()
        for seed in range(3):  # the first step only moves the layer of no weight
            step(ranker, batch(seed=seed))
        moved = [not torch.equal(p, b) for p, b in zip(encoder.parameters(), before, strict=True)]
        assert any(moved) == (not frozen)
        assert encoder.training == (not frozen)
        assert not torch.equal(ranker.interest_cross.projection.weight, torch.eye(DIM))


def test_the_interest_is_crossed_with_every_embedding():
    cross = bseq_dlrm.InterestCross(DIM, DIM, torch.device("cpu"))
    interest, dense, sparse = torch.randn(4, DIM), torch.randn(4, DIM), torch.randn(4, 2, DIM)
    got = cross(interest, dense, sparse)
    for row in range(4):
        products = [float(interest[row] @ other) for other in (dense[row], sparse[row, 0], sparse[row, 1])]
        torch.testing.assert_close(got[row], torch.cat([interest[row], torch.tensor(products)]))


@pytest.mark.parametrize("frozen", [False, True])
def test_it_runs_under_dmp_and_the_sparse_pipeline(process_group, manager, frozen):
    torch.manual_seed(0)
    device = torch.device("cpu")
    ranker = bseq.attach(make_host(DLRM, "meta"), make_encoder(device="meta"), frozen=frozen, manager=manager)
    task = DLRMInterestTrain(ranker).train()
    fused = {"optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD, "learning_rate": 0.1}
    sharders = [EmbeddingCollectionSharder(fused_params=fused), EmbeddingBagCollectionSharder(fused_params=fused)]
    names = ("ad_table", "place_table", "item")
    constraints = {name: ParameterConstraints(sharding_types=["table_wise"]) for name in names}
    topology = Topology(world_size=1, compute_device="cpu")
    plan = EmbeddingShardingPlanner(topology=topology, constraints=constraints).collective_plan(task, sharders)
    parallel = DistributedModelParallel(task, device=device, plan=plan, sharders=sharders)
    dense = dict(in_backward_optimizer_filter(parallel.named_parameters()))
    dense = {name: p for name, p in dense.items() if p.requires_grad}
    adam = KeyedOptimizerWrapper(dense, lambda parameters: torch.optim.Adam(parameters, lr=1e-2))
    pipeline = TrainPipelineSparseDist(parallel, CombinedOptimizer([parallel.fused_optimizer, adam]), device)
    table_before = table_of(parallel).clone()
    data = iter([batch(128, seed) for seed in range(60)])
    losses = []
    while True:
        try:
            losses.append(float(pipeline.progress(data)[0]))
        except StopIteration:
            break
    assert len(losses) == 60
    assert len(pipeline._pipelined_modules) == 2  # the encoder's tables and the host's: look-ups overlap with computing
    assert torch.equal(table_of(parallel), table_before) == frozen
    if not frozen:
        assert sum(losses[-5:]) / 5 < 0.5 * sum(losses[:5]) / 5  # which the host without a history can't


def table_of(parallel):
    state = parallel.state_dict()
    [name] = [name for name in state if name.endswith("embeddings.item.weight")]
    return state[name].local_shards()[0].tensor.detach()


def test_other_hosts_are_left_to_others(manager):
    with pytest.raises(
        bseq.UsageError, match=r"no plugin attaches an encoder to a Linear; those that attach: \['dlrm'\]"
    ):
        bseq.attach(nn.Linear(2, 2), make_encoder(), manager=manager)


def test_an_over_arch_of_another_make_is_refused(manager):
    host = make_host(DLRM)
    host.over_arch = nn.Linear(3, 1)
    with pytest.raises(bseq.UsageError, match="the over arch is a Linear that does not begin with TorchRec's MLP"):
        bseq.attach(host, make_encoder(), manager=manager)


def test_the_crossnet_of_a_dcn_is_kept(manager):
    ranker = bseq.attach(make_host(DLRM_DCN), make_encoder(), manager=manager)
    assert any(isinstance(module, LowRankCrossNet) for module in ranker.inter_arch.modules())
