"""Sequence-interest encoders for TorchRec pipelines.

Names are imported when they are first used, so that ``import bseq_plugin`` is quick and needs neither torch, FAISS nor
transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bseq_plugin.hookspecs import hookimpl

if TYPE_CHECKING:
    from bseq_plugin.data.events import Events as Events
    from bseq_plugin.data.pseudonyms import Pseudonymiser as Pseudonymiser
    from bseq_plugin.data.sequences import Sequences as Sequences
    from bseq_plugin.data.vocabulary import Vocabulary as Vocabulary
    from bseq_plugin.model.attach import attach as attach
    from bseq_plugin.model.encoder import SequenceInterestEncoder as SequenceInterestEncoder
    from bseq_plugin.model.interest_model import InterestModel as InterestModel
    from bseq_plugin.model.target_attention import TargetAttention as TargetAttention
    from bseq_plugin.model.task import SequenceInterestTask as SequenceInterestTask
    from bseq_plugin.plugins import plugin_manager as plugin_manager
    from bseq_plugin.publishing.delta import merge_delta as merge_delta
    from bseq_plugin.publishing.delta import publish_delta as publish_delta
    from bseq_plugin.publishing.publish import publish as publish
    from bseq_plugin.ranking.engine import FeatureEngine as FeatureEngine
    from bseq_plugin.ranking.engine import ranking_features as ranking_features
    from bseq_plugin.ranking.interests import StoredInterests as StoredInterests
    from bseq_plugin.ranking.spec import FeatureSpec as FeatureSpec
    from bseq_plugin.readers.read_events import read_events as read_events
    from bseq_plugin.schema.attach import USER_INTEREST as USER_INTEREST
    from bseq_plugin.schema.attach import HistoryEncoder as HistoryEncoder
    from bseq_plugin.schema.encoders import SequenceEncoder as SequenceEncoder
    from bseq_plugin.schema.heads import BehaviourHead as BehaviourHead
    from bseq_plugin.schema.heads import BinaryHead as BinaryHead
    from bseq_plugin.schema.heads import CatalogueHead as CatalogueHead
    from bseq_plugin.schema.heads import CountHead as CountHead
    from bseq_plugin.schema.heads import DecoderMemory as DecoderMemory
    from bseq_plugin.schema.heads import SequenceHead as SequenceHead
    from bseq_plugin.schema.indexes import IndexCapabilities as IndexCapabilities
    from bseq_plugin.schema.indexes import RowMask as RowMask
    from bseq_plugin.schema.indexes import VectorIndex as VectorIndex
    from bseq_plugin.schema.item_encoders import ItemEncoder as ItemEncoder
    from bseq_plugin.schema.losses import Negatives as Negatives
    from bseq_plugin.schema.losses import SequenceLoss as SequenceLoss
    from bseq_plugin.schema.losses import Targets as Targets
    from bseq_plugin.schema.options import PartOptions as PartOptions
    from bseq_plugin.schema.packed import PackedEvents as PackedEvents
    from bseq_plugin.schema.ranking import FeatureInputs as FeatureInputs
    from bseq_plugin.schema.ranking_features import RankingFeature as RankingFeature
    from bseq_plugin.schema.recipe import Recipe as Recipe
    from bseq_plugin.schema.sources import CandidateSource as CandidateSource
    from bseq_plugin.schema.sources import SourceCandidates as SourceCandidates
    from bseq_plugin.schema.sources import SourceInputs as SourceInputs
    from bseq_plugin.serving.diversity import Diversity as Diversity
    from bseq_plugin.serving.filters import Filters as Filters
    from bseq_plugin.serving.fit_blend import fit_blend as fit_blend
    from bseq_plugin.serving.retriever import Retriever as Retriever
    from bseq_plugin.training.train import train as train

__version__ = "0.1.0"

_HOME = {
    "BehaviourHead": "schema.heads",
    "BinaryHead": "schema.heads",
    "CandidateSource": "schema.sources",
    "CatalogueHead": "schema.heads",
    "CountHead": "schema.heads",
    "DecoderMemory": "schema.heads",
    "Diversity": "serving.diversity",
    "Events": "data.events",
    "FeatureEngine": "ranking.engine",
    "FeatureInputs": "schema.ranking",
    "FeatureSpec": "ranking.spec",
    "Filters": "serving.filters",
    "HistoryEncoder": "schema.attach",
    "IndexCapabilities": "schema.indexes",
    "InterestModel": "model.interest_model",
    "ItemEncoder": "schema.item_encoders",
    "Negatives": "schema.losses",
    "PackedEvents": "schema.packed",
    "PartOptions": "schema.options",
    "Pseudonymiser": "data.pseudonyms",
    "RankingFeature": "schema.ranking_features",
    "Recipe": "schema.recipe",
    "Retriever": "serving.retriever",
    "RowMask": "schema.indexes",
    "SequenceEncoder": "schema.encoders",
    "SequenceHead": "schema.heads",
    "SequenceInterestEncoder": "model.encoder",
    "SequenceInterestTask": "model.task",
    "SequenceLoss": "schema.losses",
    "Sequences": "data.sequences",
    "SourceCandidates": "schema.sources",
    "SourceInputs": "schema.sources",
    "StoredInterests": "ranking.interests",
    "TargetAttention": "model.target_attention",
    "Targets": "schema.losses",
    "USER_INTEREST": "schema.attach",
    "VectorIndex": "schema.indexes",
    "Vocabulary": "data.vocabulary",
    "attach": "model.attach",
    "fit_blend": "serving.fit_blend",
    "merge_delta": "publishing.delta",
    "plugin_manager": "plugins",
    "publish": "publishing.publish",
    "publish_delta": "publishing.delta",
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
