"""Each ranking feature that comes with bseq stands here, in the order of the default specification."""

from __future__ import annotations

from bseq_plugin.ranking.features.attention import DinAttnEntropy, DinAttnMax, DinCtx
from bseq_plugin.ranking.features.counts import (
    NEvents,
    NEventsWindow,
    NSameAction,
    NSameCategory,
    NSameItem,
    SecsSinceLastEvent,
    SecsSinceLastSameItem,
    SecsSinceLastSimilar,
)
from bseq_plugin.ranking.features.history import (
    DecaySim,
    HistSimMax,
    HistSimMean,
    HistSimP90,
    NegSimSkip,
    SimActionCentroid,
    SimLast1,
    SimLast3Mean,
)
from bseq_plugin.ranking.features.interests import InterestMask, ItemVec, UserInterests, UserPooled
from bseq_plugin.ranking.features.provenance import (
    EncoderVersion,
    InterestAgeSecs,
    InterestDispersion,
    IsColdItem,
    IsColdUser,
    NInterestsHit,
    RetrievalInterest,
    RetrievalRank,
    RetrievalScore,
)
from bseq_plugin.ranking.features.sessions import SessionLen, SessionPosition
from bseq_plugin.ranking.features.similarity import (
    SimArgmaxInterest,
    SimMax,
    SimMean,
    SimPerInterest,
    SimPooled,
    SimSoft,
    SimTop2Gap,
)
from bseq_plugin.schema.ranking_features import RankingFeature

FEATURES: tuple[type[RankingFeature], ...] = (
    *(UserInterests, InterestMask, UserPooled, ItemVec),
    *(SimMax, SimMean, SimTop2Gap, SimArgmaxInterest, SimSoft, SimPooled, SimPerInterest),
    *(SimLast1, SimLast3Mean, HistSimMax, HistSimMean, HistSimP90, DecaySim, SimActionCentroid, NegSimSkip),
    *(DinAttnMax, DinAttnEntropy, DinCtx),
    *(NEvents, NEventsWindow, SecsSinceLastEvent, SecsSinceLastSameItem, SecsSinceLastSimilar),
    *(NSameItem, NSameCategory, NSameAction, SessionPosition, SessionLen),
    *(RetrievalRank, RetrievalScore, RetrievalInterest, NInterestsHit),
    *(InterestAgeSecs, EncoderVersion, IsColdUser, IsColdItem, InterestDispersion),
)
