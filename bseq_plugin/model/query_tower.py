"""The dense layers of a host's query tower, as numbers: what of a host can go into a store.

Shape letters: B users, V items, I width of the encoder's output (K * D), O width of the towers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torchrec.modules.mlp import MLP, Perceptron

from bseq_plugin.errors import RunError, UsageError


class Normalize(nn.Module):
    """A module that brings the last dimension to length 1: scores are cosines then."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` divided by its length."""
        return nn.functional.normalize(x, dim=-1)


# name -> what makes the layer
PLAIN: dict[str, Callable[[], nn.Module]] = {
    "normalize": Normalize,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
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


class QueryTower(nn.Module):
    """The dense layers of a query tower, as a store holds them: names and numbers, no code.

    Args:
        spec: {"kind": "linear", "in": I, "out": O, "bias": bool} | {"kind": "layer_norm", "dim": n, "eps": float}, with
            {"affine": False} or {"bias": False} if it has neither weight nor bias, or no bias | {"kind": "normalize"} |
            {"kind": name of an activation}, in order.
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
                for name, parameter in own.named_parameters():
                    parameter.copy_(getattr(theirs, name))
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


def _layers(module: Any) -> Iterator[nn.Module | str]:
    """Yield linear layers and layer norms as they are, and layers without numbers by their names."""
    if name := _name_of_plain(module):
        yield name
    elif _computes(module, nn.Linear, nn.LayerNorm):
        yield module
    elif _computes(module, nn.Sequential, nn.ModuleList):
        for layer in module:
            yield from _layers(layer)
    elif _computes(module, MLP):
        yield from _layers(module._mlp)
    elif _computes(module, Perceptron):
        yield from _layers(module._linear)
        yield from _layers(module._activation_fn)
    elif not _computes(module, nn.Dropout, nn.Identity):
        raise UsageError(
            f"the query tower has a {_called(module)}, which a store can't hold; it holds linear layers, layer norms "
            f"of one dimension and {', '.join(PLAIN)}, in nn.Sequential or TorchRec's MLP, and no subclass with a "
            "forward of its own"
        )


def _computes(module: Any, *kinds: type[nn.Module]) -> bool:
    """Return whether a module is one of these, and computes what they do: it has no forward of its own."""
    return any(isinstance(module, kind) and type(module).forward is kind.forward for kind in kinds) and (
        "forward" not in vars(module)
    )


def _name_of_plain(module: Any) -> str | None:
    if not isinstance(module, nn.Module):
        return FUNCTIONS.get(module)
    if _computes(module, nn.GELU):
        return "gelu" if module.approximate == "none" else f"gelu_{module.approximate}"
    return next((name for name, kind in PLAIN.items() if isinstance(kind, type) and _computes(module, kind)), None)


def _called(module: Any) -> str:
    return getattr(module, "__name__", None) or type(module).__name__


def _described(layer: nn.Module | str) -> dict[str, Any]:
    if isinstance(layer, str):
        return {"kind": layer}
    if isinstance(layer, nn.Linear):
        return {"kind": "linear", "in": layer.in_features, "out": layer.out_features, "bias": layer.bias is not None}
    norm = cast(nn.LayerNorm, layer)
    if len(norm.normalized_shape) > 1:
        raise UsageError(
            f"the query tower has a LayerNorm over {tuple(norm.normalized_shape)}; a store holds one over one dimension"
        )
    has = {"affine": norm.weight is not None, "bias": norm.bias is not None}
    lacking = {} if all(has.values()) else {"affine": False} if not has["affine"] else {"bias": False}
    return {"kind": "layer_norm", "dim": norm.normalized_shape[0], "eps": norm.eps, **lacking}


def _layer(spec: dict[str, Any]) -> nn.Module:
    kind = spec["kind"]
    if kind == "linear":
        return nn.Linear(spec["in"], spec["out"], bias=spec["bias"])
    if kind == "layer_norm":
        return nn.LayerNorm(spec["dim"], spec["eps"], spec.get("affine", True), spec.get("bias", True))
    if kind not in PLAIN:
        raise RunError(f"the saved query tower has a layer {kind!r}, which this version of bseq does not know")
    return PLAIN[kind]()
