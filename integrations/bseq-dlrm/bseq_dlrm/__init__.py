"""A sequence-interest encoder inside TorchRec's rankers: the plugin ``dlrm``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import bseq_plugin as bseq

if TYPE_CHECKING:
    from torch import nn

    from bseq_dlrm.ranker import DLRMWithInterest, InterestCross
    from bseq_dlrm.task import DLRMInterestTrain, InterestBatch, NextItemLoss

__all__ = ["DLRMInterestTrain", "DLRMWithInterest", "InterestBatch", "InterestCross", "NextItemLoss"]

# Imported when they are asked for: the help of the command line must not import torch.
MODULES = {
    "DLRMInterestTrain": "task",
    "DLRMWithInterest": "ranker",
    "InterestBatch": "task",
    "InterestCross": "ranker",
    "NextItemLoss": "task",
}


def __getattr__(name: str) -> Any:
    """Return a public name, from the module that makes it."""
    from importlib import import_module

    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{MODULES[name]}"), name)


@bseq.hookimpl
def bseq_attach(host: nn.Module, interest: bseq.HistoryEncoder, frozen: bool) -> nn.Module | None:
    """TorchRec's ``DLRM``, ``DLRM_DCN``, ``DLRM_Projection``, ``DLRMTrain``, ``SimpleDeepFMNN``; one attached before.

    Of a ``DLRMTrain`` a train task with its loss, else a ranker.
    """
    from torchrec.models.dlrm import DLRMTrain

    from bseq_dlrm.ranker import HOSTS, DLRMWithInterest
    from bseq_dlrm.task import DLRMInterestTrain

    if isinstance(host, HOSTS):
        return DLRMWithInterest(host, interest, frozen)
    if isinstance(host, DLRMTrain) and isinstance(host.model, HOSTS):
        ranker = DLRMWithInterest(host.model, interest, frozen)
        return DLRMInterestTrain(ranker, loss_fn=host.loss_fn).train(host.training)
    return None
