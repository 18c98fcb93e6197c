"""Sequence-interest encoders for TorchRec pipelines.

Names are imported when they are first used, so that ``import bseq_plugin`` is quick and needs neither torch, FAISS nor
transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bseq_plugin.hookspecs import hookimpl

if TYPE_CHECKING:
    from bseq_plugin.data.auto_recipe import auto_recipe as auto_recipe
    from bseq_plugin.data.events import Events as Events
    from bseq_plugin.data.pseudonyms import Pseudonymiser as Pseudonymiser
    from bseq_plugin.data.sequences import Sequences as Sequences
    from bseq_plugin.data.vocabulary import Vocabulary as Vocabulary
    from bseq_plugin.evaluation.benchmark import BenchmarkReport as BenchmarkReport
    from bseq_plugin.evaluation.benchmark import benchmark as benchmark
    from bseq_plugin.evaluation.evaluate import EvaluationReport as EvaluationReport
    from bseq_plugin.evaluation.evaluate import evaluate as evaluate
    from bseq_plugin.model.attach import attach as attach
    from bseq_plugin.model.encoder import SequenceInterestEncoder as SequenceInterestEncoder
    from bseq_plugin.model.interest_model import InterestModel as InterestModel
    from bseq_plugin.model.run import Run as Run
    from bseq_plugin.model.target_attention import TargetAttention as TargetAttention
    from bseq_plugin.model.task import SequenceInterestTask as SequenceInterestTask
    from bseq_plugin.plugins import plugin_manager as plugin_manager
    from bseq_plugin.publishing.choose import IndexTarget as IndexTarget
    from bseq_plugin.publishing.delta import merge_delta as merge_delta
    from bseq_plugin.publishing.delta import publish_delta as publish_delta
    from bseq_plugin.publishing.delta_run import publish_run_delta as publish_run_delta
    from bseq_plugin.publishing.publish import publish as publish
    from bseq_plugin.ranking.engine import FeatureEngine as FeatureEngine
    from bseq_plugin.ranking.engine import ranking_features as ranking_features
    from bseq_plugin.ranking.interests import StoredInterests as StoredInterests
    from bseq_plugin.ranking.spec import FeatureSpec as FeatureSpec
    from bseq_plugin.readers.read_events import read_events as read_events
    from bseq_plugin.schema.heads import BehaviourHead as BehaviourHead
    from bseq_plugin.schema.heads import BinaryHead as BinaryHead
    from bseq_plugin.schema.heads import CatalogueHead as CatalogueHead
    from bseq_plugin.schema.heads import CountHead as CountHead
    from bseq_plugin.schema.heads import DecoderMemory as DecoderMemory
    from bseq_plugin.schema.heads import SequenceHead as SequenceHead
    from bseq_plugin.schema.item_encoders import ItemEncoder as ItemEncoder
    from bseq_plugin.schema.options import PartOptions as PartOptions
    from bseq_plugin.schema.packed import PackedEvents as PackedEvents
    from bseq_plugin.schema.parts import Candidates as Candidates
    from bseq_plugin.schema.parts import IndexCapabilities as IndexCapabilities
    from bseq_plugin.schema.parts import RankingFeature as RankingFeature
    from bseq_plugin.schema.parts import RowMask as RowMask
    from bseq_plugin.schema.parts import SequenceEncoder as SequenceEncoder
    from bseq_plugin.schema.parts import SequenceLoss as SequenceLoss
    from bseq_plugin.schema.parts import Targets as Targets
    from bseq_plugin.schema.parts import VectorIndex as VectorIndex
    from bseq_plugin.schema.ranking import FeatureInputs as FeatureInputs
    from bseq_plugin.schema.recipe import Recipe as Recipe
    from bseq_plugin.schema.sources import CandidateSource as CandidateSource
    from bseq_plugin.schema.sources import SourceCandidates as SourceCandidates
    from bseq_plugin.schema.sources import SourceInputs as SourceInputs
    from bseq_plugin.serving.blend import Blend as Blend
    from bseq_plugin.serving.diversity import Diversity as Diversity
    from bseq_plugin.serving.filters import Filters as Filters
    from bseq_plugin.serving.fit_blend import fit_blend as fit_blend
    from bseq_plugin.serving.retriever import Retriever as Retriever
    from bseq_plugin.training.train import train as train

__version__ = "0.1.0"

_HOME = {
    "BehaviourHead": "schema.heads",
    "BenchmarkReport": "evaluation.benchmark",
    "BinaryHead": "schema.heads",
    "Blend": "serving.blend",
    "CandidateSource": "schema.sources",
    "Candidates": "schema.parts",
    "CatalogueHead": "schema.heads",
    "CountHead": "schema.heads",
    "DecoderMemory": "schema.heads",
    "EvaluationReport": "evaluation.evaluate",
    "Events": "data.events",
    "FeatureEngine": "ranking.engine",
    "FeatureInputs": "schema.ranking",
    "FeatureSpec": "ranking.spec",
    "Diversity": "serving.diversity",
    "Filters": "serving.filters",
    "IndexCapabilities": "schema.parts",
    "IndexTarget": "publishing.choose",
    "InterestModel": "model.interest_model",
    "ItemEncoder": "schema.item_encoders",
    "PackedEvents": "schema.packed",
    "PartOptions": "schema.options",
    "Pseudonymiser": "data.pseudonyms",
    "RankingFeature": "schema.parts",
    "Recipe": "schema.recipe",
    "Retriever": "serving.retriever",
    "RowMask": "schema.parts",
    "Run": "model.run",
    "SequenceEncoder": "schema.parts",
    "SequenceHead": "schema.heads",
    "SequenceInterestEncoder": "model.encoder",
    "SequenceInterestTask": "model.task",
    "SequenceLoss": "schema.parts",
    "Sequences": "data.sequences",
    "SourceCandidates": "schema.sources",
    "SourceInputs": "schema.sources",
    "StoredInterests": "ranking.interests",
    "TargetAttention": "model.target_attention",
    "Targets": "schema.parts",
    "VectorIndex": "schema.parts",
    "Vocabulary": "data.vocabulary",
    "attach": "model.attach",
    "auto_recipe": "data.auto_recipe",
    "benchmark": "evaluation.benchmark",
    "evaluate": "evaluation.evaluate",
    "fit_blend": "serving.fit_blend",
    "merge_delta": "publishing.delta",
    "plugin_manager": "plugins",
    "publish": "publishing.publish",
    "publish_delta": "publishing.delta",
    "publish_run_delta": "publishing.delta_run",
    "ranking_features": "ranking.engine",
    "read_events": "readers.read_events",
    "train": "training.train",
}

__all__ = ["__version__", "hookimpl", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'bseq_plugin' has no attribute {name!r}")
    try:
        value = getattr(import_module(f"bseq_plugin.{_HOME[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name not in ("torchrec", "fbgemm_gpu"):
            raise
        from bseq_plugin.errors import MissingDependencyError

        raise MissingDependencyError(
            f"bseq_plugin.{name} needs {error.name}. CPU: pip install --no-deps -r requirements/cpu.txt; "
            "GPU: pip install 'bseq-plugin[gpu]'"
        ) from error
    globals()[name] = value  # the next access is a plain attribute
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
