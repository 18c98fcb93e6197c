"""Ranking features: columns for (user, candidate, at) from events strictly before ``at``."""

from __future__ import annotations

from bseq_plugin.ranking.engine import ranking_features
from bseq_plugin.ranking.spec import FeatureSpec
from bseq_plugin.ranking.table import FeatureTable

__all__ = ["FeatureSpec", "FeatureTable", "ranking_features"]
