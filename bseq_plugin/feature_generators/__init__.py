"""The ranking features that come with bseq, in the order of the default specification."""

from __future__ import annotations

from bseq_plugin.feature_generators.interests import InterestMask, ItemVec, UserInterests, UserPooled
from bseq_plugin.feature_generators.similarity import (
    HistSimMax,
    HistSimMean,
    SimArgmaxInterest,
    SimLast1,
    SimLast3Mean,
    SimMax,
    SimMean,
    SimPerInterest,
    SimPooled,
    SimSoft,
    SimTop2Gap,
)
from bseq_plugin.schema.parts import RankingFeature

FEATURES: tuple[type[RankingFeature], ...] = (
    UserInterests,
    InterestMask,
    UserPooled,
    ItemVec,
    SimMax,
    SimMean,
    SimTop2Gap,
    SimArgmaxInterest,
    SimSoft,
    SimPooled,
    SimPerInterest,
    SimLast1,
    SimLast3Mean,
    HistSimMax,
    HistSimMean,
)
