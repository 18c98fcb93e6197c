"""A sequence-interest encoder as the user tower of a two-tower retrieval model: the plugin ``two_tower``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import bseq_plugin as bseq

if TYPE_CHECKING:
    from torch import nn

    from bseq_two_tower.losses import CandidateLoss, InBatchSoftmax
    from bseq_two_tower.model import InterestTwoTower
    from bseq_two_tower.task import InterestTwoTowerTrain, TwoTowerBatch

__all__ = ["CandidateLoss", "InBatchSoftmax", "InterestTwoTower", "InterestTwoTowerTrain", "TwoTowerBatch"]

# Imported when they are asked for: the help of the command line must not import torch.
MODULES = {
    "CandidateLoss": "losses",
    "InBatchSoftmax": "losses",
    "InterestTwoTower": "model",
    "InterestTwoTowerTrain": "task",
    "TwoTowerBatch": "task",
}


def __getattr__(name: str) -> Any:
    """Return a public name, from the module that makes it."""
    from importlib import import_module

    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{MODULES[name]}"), name)


@bseq.hookimpl
def bseq_attach(host: nn.Module, interest: bseq.HistoryEncoder, frozen: bool) -> nn.Module | None:
    """Two-towers in the form of TorchRec's retrieval example: ``ebc``, ``query_proj``, ``candidate_proj``."""
    from bseq_two_tower.model import PARTS, InterestTwoTower

    return InterestTwoTower(host, interest, frozen) if all(hasattr(host, part) for part in PARTS) else None
