"""What a host model scores with: a query tower behind the encoder, and a candidate tower.

A store holds both as a host has trained them (``query_tower``). A host without towers of its own scores
with the encoder's interest and item rows.

Shape letters: B users, N items, I width of the encoder's output (K * D), O width of the towers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchrec import KeyedJaggedTensor

from bseq_plugin.errors import UsageError
from bseq_plugin.model.encoder import SequenceInterestEncoder
from bseq_plugin.model.learned import Learned


@dataclass(frozen=True)
class Towers:
    """A host's two towers, as ``host.export_towers()`` gives them; the store serves ``query . candidate``.

    Attributes:
        host: the module that all of them stand in.
        encoder: reads the history.
        query_tower: float32 [B, I] -> [B, O], what stands between the encoder's output and the query: linear layers,
            layer norms, activations (relu, sigmoid, tanh, gelu or its approximation by tanh, silu) and ``Normalize``,
            in ``nn.Sequential`` or TorchRec's ``MLP``. None: each of the K interests is a query.
        query: a batch's history -> [B, O], the host's own forward.
        candidates: int64 [N], rows of the vocabulary (1 to V) -> [N, O], the host's own forward.
        learned: the host's record of what gradients have come back to, ``interests`` for the query tower and ``items``
            for the candidate tower; None: the host keeps none, and random towers can't be told from trained ones.
    """

    host: nn.Module
    encoder: SequenceInterestEncoder
    query_tower: nn.Module | None
    query: Callable[[KeyedJaggedTensor], Tensor]
    candidates: Callable[[Tensor], Tensor]
    learned: Learned | None = None


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
