"""A host's tables of another width: a collection of their own beside the encoder's, under one planner."""

import numpy as np
import pytest
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import distributed as dist
from torch import nn
from torchrec import EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.types import ParameterConstraints

from bseq_plugin import Recipe, SequenceInterestEncoder, Sequences, history_features
from bseq_plugin.distributed import world

RECIPE = Recipe(encoder={"name": "mean", "max_length": 10}, vectors={"dim": 8}, events={"features": ()})


class Host(nn.Module):
    def __init__(self, device):
        super().__init__()
        table = EmbeddingConfig(name="ad", num_embeddings=30, embedding_dim=20, feature_names=["ad"])
        self.ads = EmbeddingCollection(tables=[table], device=device)
        self.interest = SequenceInterestEncoder(RECIPE, 50, device=device)

    def forward(self, history, ads):
        return torch.cat([self.interest(history)["user_interest"], self.ads(ads)["ad"].values()], dim=1)


def test_one_plan_for_tables_of_two_widths():
    histories = Sequences(np.arange(3), np.array([0, 2, 5, 6]), np.array([4, 9, 1, 50, 7, 3]))
    history = history_features(histories, RECIPE)
    ads = KeyedJaggedTensor(["ad"], torch.tensor([3, 29, 0]), lengths=torch.tensor([1, 1, 1]))
    rows = {"item": ParameterConstraints(["row_wise"], ["fused"]), "ad": ParameterConstraints(["row_wise"], ["fused"])}
    sharders = [EmbeddingCollectionSharder(fused_params={"optimizer": EmbOptimType.EXACT_SGD, "learning_rate": 0.5})]
    with world() as here:
        host = Host(torch.device("meta"))
        planner = EmbeddingShardingPlanner(topology=Topology(here.size, "cpu"), constraints=rows)
        plan = planner.collective_plan(host, sharders, dist.GroupMember.WORLD)
        sharded = DistributedModelParallel(host, device=here.device, plan=plan, sharders=sharders)
        weights = {
            name: (value.local_shards()[0].tensor if hasattr(value, "local_shards") else value).detach().clone()
            for name, value in sharded.state_dict().items()
        }
        plain = Host(torch.device("cpu"))
        plain.load_state_dict(weights)
        found = sharded(history, ads)
        torch.testing.assert_close(found, plain(history, ads))
        assert found.shape == (3, 28)
        found.sum().backward()  # the fused step: of each looked-up row of either width
        learned = sharded.state_dict()
    ad = learned["ads.embeddings.ad.weight"].local_shards()[0].tensor
    before = weights["ads.embeddings.ad.weight"]
    torch.testing.assert_close(ad[[0, 3, 29]], before[[0, 3, 29]] - 0.5)
    assert torch.equal(ad[1:3], before[1:3])
    name = next(name for name in weights if name.endswith("item.weight"))
    changed = (learned[name].local_shards()[0].tensor != weights[name]).any(1).nonzero().flatten().tolist()
    assert changed == [1, 3, 4, 7, 9, 50]


def test_torchrec_takes_one_width_a_collection():
    """Why there are two: if this fails, docs/scale.md can say less."""
    tables = [
        EmbeddingConfig(name=name, num_embeddings=5, embedding_dim=dim, feature_names=[name])
        for name, dim in (("a", 4), ("b", 8))
    ]
    with pytest.raises(ValueError, match="same embedding dimension"):
        EmbeddingCollection(tables=tables)
