"""Ranking describes a user and a candidate by features of events strictly before an instant."""

from __future__ import annotations

from bseq_plugin.ranking.engine import FeatureEngine, ranking_features
from bseq_plugin.ranking.interests import StoredInterests
from bseq_plugin.ranking.spec import FeatureSpec
from bseq_plugin.ranking.streaming import stream_features, write_features
from bseq_plugin.ranking.table import FeatureTable

__all__ = [
    "FeatureEngine",
    "FeatureSpec",
    "FeatureTable",
    "StoredInterests",
    "ranking_features",
    "stream_features",
    "write_features",
]
