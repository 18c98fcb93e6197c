"""Each ranking feature that comes with bseq stands here, in the order of the default specification."""

from __future__ import annotations

from bseq_plugin.ranking.features import attention, counts, history, interests, provenance, sessions, similarity
from bseq_plugin.schema.ranking_features import RankingFeature

FEATURES: tuple[type[RankingFeature], ...] = (
    *(interests.UserInterests, interests.InterestMask, interests.UserPooled, interests.ItemVec),
    *(similarity.SimMax, similarity.SimMean, similarity.SimTop2Gap, similarity.SimArgmaxInterest),
    *(similarity.SimSoft, similarity.SimPooled, similarity.SimPerInterest),
    *(history.SimLast1, history.SimLast3Mean, history.HistSimMax, history.HistSimMean, history.HistSimP90),
    *(history.DecaySim, history.SimActionCentroid, history.NegSimSkip),
    *(attention.DinAttnMax, attention.DinAttnEntropy, attention.DinCtx),
    *(counts.NEvents, counts.NEventsWindow),
    *(counts.SecsSinceLastEvent, counts.SecsSinceLastSameItem, counts.SecsSinceLastSimilar),
    *(counts.NSameItem, counts.NSameCategory, counts.NSameAction, sessions.SessionPosition, sessions.SessionLen),
    *(provenance.RetrievalRank, provenance.RetrievalScore, provenance.RetrievalInterest, provenance.NInterestsHit),
    *(provenance.InterestAgeSecs, provenance.EncoderVersion),
    *(provenance.IsColdUser, provenance.IsColdItem, provenance.InterestDispersion),
)
