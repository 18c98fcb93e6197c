"""The layers of a query tower as numbers: what they compute exactly, or refused by name."""

import json

import pytest
import torch
from small_hosts import DIM, WIDTH, queries
from torch import nn
from torchrec.modules.mlp import MLP

import bseq_plugin as bseq
from bseq_plugin.model.query_tower import QueryTower


class Renamed(nn.Linear):
    """A subclass that computes what its base does."""


LAYERS = [
    queries(),
    MLP(DIM, [4, WIDTH]),
    MLP(DIM, [4, WIDTH], activation=nn.GELU(approximate="tanh")),
    nn.Linear(DIM, WIDTH, bias=False),
    Renamed(DIM, WIDTH),
    nn.Sequential(nn.LayerNorm(DIM, bias=False), nn.GELU(approximate="tanh"), nn.SiLU(inplace=True)),
    nn.Sequential(nn.Linear(DIM, 4), nn.LayerNorm(4, elementwise_affine=False, eps=0.1), nn.GELU()),
    nn.utils.parametrizations.weight_norm(nn.Linear(DIM, WIDTH)),
]


@pytest.mark.parametrize("layers", LAYERS, ids=lambda layers: type(layers).__name__)
def test_a_query_tower_is_its_layers(layers):
    tower = QueryTower.of(layers.eval())
    x = torch.randn(5, DIM)
    torch.testing.assert_close(tower(x), layers(x), rtol=0, atol=0)
    again = QueryTower(json.loads(json.dumps(tower.spec)))
    again.load_state_dict(tower.state_dict())
    assert torch.equal(again.eval()(x), tower(x))


def louder(kind):
    class Louder(kind):
        def forward(self, *inputs):
            return 2 * super().forward(*inputs)

    return Louder


def own_forward(layer):
    layer.forward = lambda x: x + 1
    return layer


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (louder(nn.Linear)(DIM, DIM), "has a Louder, which"),
        (louder(nn.LayerNorm)(DIM), "has a Louder, which"),
        (louder(nn.GELU)(), "has a Louder, which"),
        (louder(nn.Dropout)(), "has a Louder, which"),
        (louder(nn.Sequential)(nn.Linear(DIM, DIM)), "has a Louder, which"),
        (louder(MLP)(DIM, [DIM]), "has a Louder, which"),
        (louder(bseq.Normalize)(), "has a Louder, which"),
        (own_forward(nn.Linear(DIM, DIM)), "has a Linear, which .* no subclass with a forward of its own"),
        (MLP(DIM, [DIM], activation="swish_layernorm"), "has a SwishLayerNorm, which"),
        (MLP(DIM, [DIM], activation=nn.functional.elu), "has a elu, which"),
        (nn.LayerNorm((2, DIM)), r"has a LayerNorm over \(2, 8\)"),
    ],
)
def test_a_layer_that_a_store_can_not_hold_is_named(layer, said):
    with pytest.raises(bseq.UsageError, match=said):
        QueryTower.of(nn.Sequential(nn.Linear(DIM, DIM), layer))
