"""The built-in parts come in through the same hooks as anybody's, by the entry point ``builtin``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bseq_plugin.hookspecs import hookimpl

if TYPE_CHECKING:
    from bseq_plugin.events.events import Events
    from bseq_plugin.events.log_options import LogOptions
    from bseq_plugin.schema.encoders import ItemEncoder, SequenceEncoder
    from bseq_plugin.schema.indexes import VectorIndex
    from bseq_plugin.schema.losses import SequenceLoss
    from bseq_plugin.schema.ranking_features import RankingFeature
    from bseq_plugin.schema.sources import CandidateSource

# Imports stand inside the hooks: listing the encoders must not import FAISS, nor the command line torch.


@hookimpl
def bseq_encoders() -> list[type[SequenceEncoder]]:
    """``causal``, ``cross_session``, ``gru``, ``hstu``, ``masked`` and ``mean``."""
    from bseq_plugin.encoders.causal import CausalEncoder
    from bseq_plugin.encoders.cross_session import CrossSessionEncoder
    from bseq_plugin.encoders.gru import GruEncoder
    from bseq_plugin.encoders.hstu import HstuEncoder
    from bseq_plugin.encoders.masked import MaskedEncoder
    from bseq_plugin.encoders.mean import MeanEncoder

    return [CausalEncoder, CrossSessionEncoder, GruEncoder, HstuEncoder, MaskedEncoder, MeanEncoder]


@hookimpl
def bseq_losses() -> list[type[SequenceLoss]]:
    """``softmax``, ``bce`` and ``gbce``."""
    from bseq_plugin.losses.bce import BCELoss, GeneralisedBCELoss
    from bseq_plugin.losses.softmax import SoftmaxLoss

    return [SoftmaxLoss, BCELoss, GeneralisedBCELoss]


@hookimpl
def bseq_item_encoders() -> list[type[ItemEncoder]]:
    """``columns``."""
    from bseq_plugin.item_encoders.columns import ColumnsItemEncoder

    return [ColumnsItemEncoder]


@hookimpl
def bseq_indexes() -> list[type[VectorIndex]]:
    """``exact``, ``faiss_cpu``, ``faiss_shards`` and ``faiss_gpu``; FAISS itself is imported when one is built."""
    from bseq_plugin.indexes.exact import ExactIndex
    from bseq_plugin.indexes.faiss_cpu import FaissCpuIndex
    from bseq_plugin.indexes.faiss_gpu import FaissGpuIndex
    from bseq_plugin.indexes.faiss_shards import FaissShardsIndex

    return [ExactIndex, FaissCpuIndex, FaissShardsIndex, FaissGpuIndex]


@hookimpl
def bseq_candidate_sources() -> list[type[CandidateSource]]:
    """``item_neighbours``, ``transitions`` and ``popularity``."""
    from bseq_plugin.candidate_sources.latest_items import ItemNeighbourSource, TransitionSource
    from bseq_plugin.candidate_sources.popularity import PopularitySource

    return [ItemNeighbourSource, TransitionSource, PopularitySource]


@hookimpl
def bseq_ranking_features() -> list[type[RankingFeature]]:
    """Interest vectors and similarities."""
    from bseq_plugin.ranking.features import FEATURES

    return list(FEATURES)


@hookimpl(trylast=True)  # a plugin that recognises a source is asked before the built-in readers
def bseq_read_events(source: object, options: LogOptions) -> Events | None:
    """DataFrame, Arrow stream; Parquet, CSV, TSV, JSON lines; RecBole ``.inter``, ``user item item ...`` text."""
    from bseq_plugin.readers.read_events import read

    return read(source, options)
