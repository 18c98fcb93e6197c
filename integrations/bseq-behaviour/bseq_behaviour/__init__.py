"""What users will do and are like, from the interest vectors of bseq: the bseq plugin ``behaviour``.

Names are imported when they are first used, so that ``bseq --help`` needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import bseq_plugin as bseq
from bseq_behaviour.contract.hookspecs import hookimpl as hookimpl

if TYPE_CHECKING:
    import typer

    from bseq_behaviour.contract.choice import HeadChoice as HeadChoice
    from bseq_behaviour.contract.heads import BehaviourHead as BehaviourHead
    from bseq_behaviour.contract.heads import BinaryHead as BinaryHead
    from bseq_behaviour.contract.heads import CatalogueHead as CatalogueHead
    from bseq_behaviour.contract.heads import CountHead as CountHead
    from bseq_behaviour.contract.heads import DecoderMemory as DecoderMemory
    from bseq_behaviour.contract.heads import SequenceHead as SequenceHead
    from bseq_behaviour.contract.registry import head_manager as head_manager
    from bseq_behaviour.demand.forecast_demand import forecast_demand as forecast_demand
    from bseq_behaviour.insight.anomalies import Detector as Detector
    from bseq_behaviour.insight.explain import explain as explain
    from bseq_behaviour.insight.segments import describe_segments as describe_segments
    from bseq_behaviour.insight.segments import segment_users as segment_users
    from bseq_behaviour.multitask.fit_multitask import fit_multitask as fit_multitask
    from bseq_behaviour.multitask.forecast_multitask import forecast_multitask as forecast_multitask
    from bseq_behaviour.multitask.moments import Objectives as Objectives
    from bseq_behaviour.multitask.moments import moment as moment
    from bseq_behaviour.multitask.multitask_file import load_multitask as load_multitask
    from bseq_behaviour.multitask.multitask_file import save_multitask as save_multitask
    from bseq_behaviour.next_k.decoder_file import load_decoder as load_decoder
    from bseq_behaviour.next_k.decoder_file import save_decoder as save_decoder
    from bseq_behaviour.next_k.fit_next_k import fit_next_k as fit_next_k
    from bseq_behaviour.next_k.forecast_next_k import forecast_next_k as forecast_next_k
    from bseq_behaviour.next_k.futures import futures as futures
    from bseq_behaviour.next_k.judge_next_k import judge_next_k as judge_next_k
    from bseq_behaviour.propensity.fit_heads import FittedHeads as FittedHeads
    from bseq_behaviour.propensity.propensities import Question as Question
    from bseq_behaviour.propensity.propensities import fit_propensities as fit_propensities
    from bseq_behaviour.propensity.propensities import score as score
    from bseq_behaviour.propensity.vectors import user_vectors as user_vectors
    from bseq_behaviour.returns.fit_return_time import fit_return_time as fit_return_time
    from bseq_behaviour.returns.return_time import ReturnTime as ReturnTime
    from bseq_behaviour.returns.returns import forecast_returns as forecast_returns

__version__ = "0.1.0"

_HOME = {
    "BehaviourHead": "contract.heads",
    "BinaryHead": "contract.heads",
    "CatalogueHead": "contract.heads",
    "CountHead": "contract.heads",
    "DecoderMemory": "contract.heads",
    "Detector": "insight.anomalies",
    "FittedHeads": "propensity.fit_heads",
    "HeadChoice": "contract.choice",
    "Objectives": "multitask.moments",
    "Question": "propensity.propensities",
    "ReturnTime": "returns.return_time",
    "SequenceHead": "contract.heads",
    "describe_segments": "insight.segments",
    "explain": "insight.explain",
    "fit_multitask": "multitask.fit_multitask",
    "fit_next_k": "next_k.fit_next_k",
    "fit_propensities": "propensity.propensities",
    "fit_return_time": "returns.fit_return_time",
    "forecast_demand": "demand.forecast_demand",
    "forecast_multitask": "multitask.forecast_multitask",
    "forecast_next_k": "next_k.forecast_next_k",
    "forecast_returns": "returns.returns",
    "futures": "next_k.futures",
    "head_manager": "contract.registry",
    "judge_next_k": "next_k.judge_next_k",
    "load_decoder": "next_k.decoder_file",
    "load_multitask": "multitask.multitask_file",
    "moment": "multitask.moments",
    "save_decoder": "next_k.decoder_file",
    "save_multitask": "multitask.multitask_file",
    "score": "propensity.propensities",
    "segment_users": "insight.segments",
    "user_vectors": "propensity.vectors",
}

__all__ = ["__version__", "hookimpl", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'bseq_behaviour' has no attribute {name!r}")
    value = getattr(import_module(f"bseq_behaviour.{_HOME[name]}"), name)
    globals()[name] = value  # the next access is a plain attribute
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, "bseq_commands"})  # the hook is looked for here


@bseq.hookimpl
def bseq_commands(app: typer.Typer) -> None:
    """``score``, ``returns``, ``demand``, ``next-k``, ``multitask``, ``segments``, ``anomalies``, ``explain`` and
    ``heads``.
    """
    from bseq_behaviour.commands import add

    add(app)
