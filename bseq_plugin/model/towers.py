"""What a host model scores with: a query tower behind the encoder, and a candidate tower.

A store holds both as a host has trained them (``InterestModel.from_host``). A host without towers of its own scores
with the encoder's interest and item rows.

Shape letters: B users, N items, I width of the encoder's output (K * D), O width of the towers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torchrec import KeyedJaggedTensor

from bseq_plugin.errors import RunError, UsageError
from bseq_plugin.model.encoder import SequenceInterestEncoder

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}
FUNCTIONS = {
    torch.relu: "relu",
    nn.functional.relu: "relu",
    torch.sigmoid: "sigmoid",
    torch.tanh: "tanh",
    nn.functional.gelu: "gelu",
    nn.functional.silu: "silu",
}


class Normalize(nn.Module):
    """A module that brings the last dimension to length 1: scores are cosines then."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` divided by its length."""
        return nn.functional.normalize(x, dim=-1)


@dataclass(frozen=True)
class Towers:
    """A host's two towers, as ``host.export_towers()`` gives them; the store serves ``query . candidate``.

    Attributes:
        host: the module that all of them stand in.
        encoder: reads the history.
        query_tower: float32 [B, I] -> [B, O], what stands between the encoder's output and the query: linear layers,
            layer norms, activations (relu, sigmoid, tanh, gelu, silu) and ``Normalize``, in ``nn.Sequential`` or
            TorchRec's ``MLP``. None: each of the K interests is a query.
        query: a batch's history -> [B, O], the host's own forward.
        candidates: int64 [N], rows of the vocabulary (1 to V) -> [N, O], the host's own forward.
    """

    host: nn.Module
    encoder: SequenceInterestEncoder
    query_tower: nn.Module | None
    query: Callable[[KeyedJaggedTensor], Tensor]
    candidates: Callable[[Tensor], Tensor]


def export_towers(host: nn.Module) -> Towers:
    """Return what a host scores with: its own ``export_towers()``, or that of the one module inside which has one, or
    else the rows of the one ``SequenceInterestEncoder`` inside.

    Raises UsageError if there is none, or more than one, and for an encoder whose item table no loss has asked for: it
    has no ``item_keys``, so that its rows were never scored with.
    """
    with_towers = [module for _, module in _unshared(host) if hasattr(module, "export_towers")]
    if len(with_towers) == 1:
        towers: Towers = cast(Any, with_towers[0]).export_towers()
        return towers
    encoders = [(name, m) for name, m in _unshared(host) if isinstance(m, SequenceInterestEncoder)]
    if with_towers or len(encoders) != 1:
        there = [type(module).__name__ for module in with_towers] or [name for name, _ in encoders]
        raise UsageError(
            f"{type(host).__name__} has {len(there)} of what can be published ({there}); give the one that is meant: "
            "bseq.export_towers(host.its_module)"
        )
    name, encoder = encoders[0]
    return own_towers(encoder, name)


def _unshared(host: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules inside, not those of a module that has given its towers."""
    inside: list[str] = []
    for name, module in host.named_modules():
        if not any(name.startswith(outer) for outer in inside):
            yield name, module
        if hasattr(module, "export_towers"):
            inside.append(f"{name}." if name else "")


def own_towers(encoder: SequenceInterestEncoder, name: str = "") -> Towers:
    """Return the towers of an encoder that a host's loss scores with itself: see ``interest_and_items``."""
    if not encoder.item_keys:
        raise UsageError(
            f"no loss has asked for table 'item' of {name or 'the encoder'}: its rows were read in histories but never "
            "scored, and a store would score with them. Make the encoder with item_keys and write the loss over "
            "interest_and_items, or give the host a method export_towers (docs/embedding.md)"
        )
    key = encoder.item_keys[0]

    def candidates(rows_N: Tensor) -> Tensor:
        features = with_items(encoder, rows_N, key)
        vectors_ND: Tensor = encoder.interest_and_items(features)[1][key]
        return vectors_ND

    return Towers(encoder, encoder, None, lambda features: encoder(features).values(), candidates)


def with_items(encoder: SequenceInterestEncoder, rows_N: Tensor, key: str) -> KeyedJaggedTensor:
    """Return a batch of one user without events, whose ``key`` has these ids."""
    keys = list(encoder.rows)
    lengths = torch.tensor([len(rows_N) if name == key else 0 for name in keys], device=rows_N.device)
    return KeyedJaggedTensor(keys, rows_N, lengths=lengths)


class QueryTower(nn.Module):
    """The dense layers of a query tower, as a store holds them: names and numbers, no code.

    Args:
        spec: {"kind": "linear", "in": I, "out": O, "bias": bool} | {"kind": "layer_norm", "dim": n, "eps": float} |
            {"kind": "normalize"} | {"kind": name of an activation}, in order.
    """

    def __init__(self, spec: list[dict[str, Any]]) -> None:
        super().__init__()
        self.spec = spec
        self.layers = nn.Sequential(*map(_layer, spec))

    @classmethod
    def of(cls, module: nn.Module) -> QueryTower:
        """Return a copy of a host's layers. Raises UsageError that names a layer of another kind."""
        layers = list(_layers(module))
        tower = cls([_described(layer) for layer in layers])
        with torch.no_grad():
            for own, theirs in zip(tower.layers, layers, strict=True):
                for parameter, value in zip(own.parameters(), _parameters(theirs), strict=True):
                    parameter.copy_(value)
        return tower.eval().requires_grad_(False)

    def forward(self, interests_BI: Tensor) -> Tensor:
        """Return queries ``[B, O]``."""
        queries_BO: Tensor = self.layers(interests_BI)
        return queries_BO


@dataclass(frozen=True)
class StoredTowers:
    """A host's towers as a plain model has them.

    Attributes:
        query: the encoder's output -> a query.
        item_vectors_VO: float32 [V + 1, O], what the candidate tower says of each item; row 0 is zeros.
    """

    query: QueryTower
    item_vectors_VO: Tensor

    @classmethod
    def take(cls, header: Mapping[str, Any], state: dict[str, Tensor], items: Mapping[str, Tensor]) -> Self | None:
        """Take the towers out of what a model's files say; None if there are none. RunError if they don't fit."""
        own = {name: state.pop(name) for name in list(state) if name.startswith("query_tower.")}
        if "query_tower" not in header:
            return None
        tower = QueryTower(header["query_tower"])
        try:
            tower.load_state_dict({name.removeprefix("query_tower."): value for name, value in own.items()})
            return cls(tower.eval().requires_grad_(False), items["item_vectors"])
        except (RuntimeError, KeyError) as error:
            raise RunError(f"the saved query tower does not fit its description: {error}") from None


def _parameters(layer: nn.Module | str) -> list[Tensor]:
    return [] if isinstance(layer, str) else list(layer.parameters())


def _layers(module: Any) -> Iterator[nn.Module | str]:
    """Yield linear layers, layer norms and normalisations as they are, and activations by their names."""
    if hasattr(module, "_mlp"):  # TorchRec's MLP
        module = module._mlp
    if isinstance(module, nn.Linear | nn.LayerNorm | Normalize):
        yield module
    elif isinstance(module, nn.Sequential | nn.ModuleList):
        for layer in module:
            yield from _layers(layer)
    elif hasattr(module, "_linear") and hasattr(module, "_activation_fn"):  # TorchRec's Perceptron
        yield module._linear
        yield from _layers(module._activation_fn)
    elif name := FUNCTIONS.get(module) or next((n for n, kind in ACTIVATIONS.items() if type(module) is kind), None):
        yield name
    elif not isinstance(module, nn.Dropout | nn.Identity):
        raise UsageError(
            f"the query tower has a {getattr(module, '__name__', type(module).__name__)}, which a store can't hold; it "
            f"holds linear layers, layer norms, Normalize and {', '.join(ACTIVATIONS)}"
        )


def _described(layer: nn.Module | str) -> dict[str, Any]:
    if isinstance(layer, nn.Linear):
        return {"kind": "linear", "in": layer.in_features, "out": layer.out_features, "bias": layer.bias is not None}
    if isinstance(layer, nn.LayerNorm):
        return {"kind": "layer_norm", "dim": layer.normalized_shape[0], "eps": layer.eps}
    return {"kind": layer if isinstance(layer, str) else "normalize"}


def _layer(spec: dict[str, Any]) -> nn.Module:
    kind = spec["kind"]
    if kind == "linear":
        return nn.Linear(spec["in"], spec["out"], bias=spec["bias"])
    if kind == "layer_norm":
        return nn.LayerNorm(spec["dim"], eps=spec["eps"])
    if kind == "normalize":
        return Normalize()
    if kind not in ACTIVATIONS:
        raise RunError(f"the saved query tower has a layer {kind!r}, which this version of bseq does not know")
    return ACTIVATIONS[kind]()
