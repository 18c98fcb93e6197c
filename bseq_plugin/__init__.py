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
    from bseq_plugin.data.batches import history_features as history_features
    from bseq_plugin.data.event_features import session_starts as session_starts
    from bseq_plugin.data.items import PopularityPrior as PopularityPrior
    from bseq_plugin.data.items import check_items as check_items
    from bseq_plugin.errors import BseqError as BseqError
    from bseq_plugin.errors import MissingDependencyError as MissingDependencyError
    from bseq_plugin.errors import PluginError as PluginError
    from bseq_plugin.errors import RecipeError as RecipeError
    from bseq_plugin.errors import RunError as RunError
    from bseq_plugin.errors import SchemaError as SchemaError
    from bseq_plugin.errors import StoreError as StoreError
    from bseq_plugin.errors import UsageError as UsageError
    from bseq_plugin.evaluation.benchmark import BenchmarkReport as BenchmarkReport
    from bseq_plugin.evaluation.benchmark import benchmark as benchmark
    from bseq_plugin.evaluation.evaluate import EvaluationReport as EvaluationReport
    from bseq_plugin.evaluation.evaluate import evaluate as evaluate
    from bseq_plugin.events.events import Events as Events
    from bseq_plugin.events.events import instant_us as instant_us
    from bseq_plugin.events.pseudonyms import Pseudonymiser as Pseudonymiser
    from bseq_plugin.events.sequences import Sequences as Sequences
    from bseq_plugin.events.vocabulary import Vocabulary as Vocabulary
    from bseq_plugin.layers import IdentityLinear as IdentityLinear
    from bseq_plugin.layers import ZeroLinear as ZeroLinear
    from bseq_plugin.layers import dropout as dropout
    from bseq_plugin.metrics import ranking_metrics as ranking_metrics
    from bseq_plugin.metrics import top_k_items as top_k_items
    from bseq_plugin.model.attach import attach as attach
    from bseq_plugin.model.direct import event_attention as event_attention
    from bseq_plugin.model.direct import event_states as event_states
    from bseq_plugin.model.encoder import ITEM_TABLE as ITEM_TABLE
    from bseq_plugin.model.encoder import SequenceInterestEncoder as SequenceInterestEncoder
    from bseq_plugin.model.interest_model import InterestModel as InterestModel
    from bseq_plugin.model.items import score_vectors as score_vectors
    from bseq_plugin.model.run import Run as Run
    from bseq_plugin.model.target_attention import TargetAttention as TargetAttention
    from bseq_plugin.model.task import SequenceInterestTask as SequenceInterestTask
    from bseq_plugin.model.tensor_file import load_sealed as load_sealed
    from bseq_plugin.model.tensor_file import save_sealed as save_sealed
    from bseq_plugin.plugins import PluginInfo as PluginInfo
    from bseq_plugin.plugins import PluginManager as PluginManager
    from bseq_plugin.plugins import plugin_manager as plugin_manager
    from bseq_plugin.publishing.choose import IndexTarget as IndexTarget
    from bseq_plugin.publishing.delta import merge_delta as merge_delta
    from bseq_plugin.publishing.delta import publish_delta as publish_delta
    from bseq_plugin.publishing.publish import publish as publish
    from bseq_plugin.ranking.engine import FeatureEngine as FeatureEngine
    from bseq_plugin.ranking.engine import ranking_features as ranking_features
    from bseq_plugin.ranking.interests import StoredInterests as StoredInterests
    from bseq_plugin.ranking.spec import FeatureSpec as FeatureSpec
    from bseq_plugin.readers.read_events import read_events as read_events
    from bseq_plugin.recipe.recipe import Recipe as Recipe
    from bseq_plugin.schema.encoders import USER_INTEREST as USER_INTEREST
    from bseq_plugin.schema.encoders import HistoryEncoder as HistoryEncoder
    from bseq_plugin.schema.encoders import ItemEncoder as ItemEncoder
    from bseq_plugin.schema.encoders import SequenceEncoder as SequenceEncoder
    from bseq_plugin.schema.indexes import IndexCapabilities as IndexCapabilities
    from bseq_plugin.schema.indexes import RowMask as RowMask
    from bseq_plugin.schema.indexes import VectorIndex as VectorIndex
    from bseq_plugin.schema.losses import Negatives as Negatives
    from bseq_plugin.schema.losses import SequenceLoss as SequenceLoss
    from bseq_plugin.schema.losses import Targets as Targets
    from bseq_plugin.schema.options import PartOptions as PartOptions
    from bseq_plugin.schema.options import parse_options as parse_options
    from bseq_plugin.schema.packed import PackedEvents as PackedEvents
    from bseq_plugin.schema.ranking import FeatureInputs as FeatureInputs
    from bseq_plugin.schema.ranking_features import RankingFeature as RankingFeature
    from bseq_plugin.schema.sources import CandidateSource as CandidateSource
    from bseq_plugin.schema.sources import SourceCandidates as SourceCandidates
    from bseq_plugin.schema.sources import SourceInputs as SourceInputs
    from bseq_plugin.serving.blend import Blend as Blend
    from bseq_plugin.serving.diversity import Diversity as Diversity
    from bseq_plugin.serving.filters import Filters as Filters
    from bseq_plugin.serving.fit_blend import fit_blend as fit_blend
    from bseq_plugin.serving.retriever import Retriever as Retriever
    from bseq_plugin.training.train import train as train

__version__ = "0.2.0"

_HOME = {
    "BenchmarkReport": "evaluation.benchmark",
    "Blend": "serving.blend",
    "BseqError": "errors",
    "CandidateSource": "schema.sources",
    "Diversity": "serving.diversity",
    "EvaluationReport": "evaluation.evaluate",
    "Events": "events.events",
    "FeatureEngine": "ranking.engine",
    "FeatureInputs": "schema.ranking",
    "FeatureSpec": "ranking.spec",
    "Filters": "serving.filters",
    "HistoryEncoder": "schema.encoders",
    "ITEM_TABLE": "model.encoder",
    "IdentityLinear": "layers",
    "IndexCapabilities": "schema.indexes",
    "IndexTarget": "publishing.choose",
    "InterestModel": "model.interest_model",
    "ItemEncoder": "schema.encoders",
    "MissingDependencyError": "errors",
    "Negatives": "schema.losses",
    "PackedEvents": "schema.packed",
    "PartOptions": "schema.options",
    "PluginError": "errors",
    "PluginInfo": "plugins",
    "PluginManager": "plugins",
    "PopularityPrior": "data.items",
    "Pseudonymiser": "events.pseudonyms",
    "RankingFeature": "schema.ranking_features",
    "Recipe": "recipe.recipe",
    "RecipeError": "errors",
    "Retriever": "serving.retriever",
    "RowMask": "schema.indexes",
    "Run": "model.run",
    "RunError": "errors",
    "SchemaError": "errors",
    "SequenceEncoder": "schema.encoders",
    "SequenceInterestEncoder": "model.encoder",
    "SequenceInterestTask": "model.task",
    "SequenceLoss": "schema.losses",
    "Sequences": "events.sequences",
    "SourceCandidates": "schema.sources",
    "SourceInputs": "schema.sources",
    "StoreError": "errors",
    "StoredInterests": "ranking.interests",
    "TargetAttention": "model.target_attention",
    "Targets": "schema.losses",
    "USER_INTEREST": "schema.encoders",
    "UsageError": "errors",
    "VectorIndex": "schema.indexes",
    "Vocabulary": "events.vocabulary",
    "ZeroLinear": "layers",
    "attach": "model.attach",
    "auto_recipe": "data.auto_recipe",
    "benchmark": "evaluation.benchmark",
    "check_items": "data.items",
    "dropout": "layers",
    "evaluate": "evaluation.evaluate",
    "event_attention": "model.direct",
    "event_states": "model.direct",
    "fit_blend": "serving.fit_blend",
    "history_features": "data.batches",
    "instant_us": "events.events",
    "load_sealed": "model.tensor_file",
    "merge_delta": "publishing.delta",
    "parse_options": "schema.options",
    "plugin_manager": "plugins",
    "publish": "publishing.publish",
    "publish_delta": "publishing.delta",
    "ranking_features": "ranking.engine",
    "ranking_metrics": "metrics",
    "read_events": "readers.read_events",
    "save_sealed": "model.tensor_file",
    "score_vectors": "model.items",
    "session_starts": "data.event_features",
    "top_k_items": "metrics",
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
