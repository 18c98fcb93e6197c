"""What a ranker is worth: NDCG@10 of a request, AUC and log-loss of a household, with intervals over households.

Shape letters: N candidate rows, Q requests, U households.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.metrics import log_loss, roc_auc_score

from bseq_plugin.evaluation.bootstrap import bootstrap_interval


@dataclass(frozen=True)
class Quality:
    """Figures of one ranker on the test weeks.

    Attributes:
        ndcg_U: float [U], mean NDCG@10 of a household's requests with a purchase among the candidates.
        auc_U: float [U], AUC over all candidate rows of a household.
    """

    ndcg: float
    auc: float
    log_loss: float
    ndcg_U: np.ndarray
    auc_U: np.ndarray


def ndcg_of_requests(request_N: np.ndarray, label_N: np.ndarray, score_N: np.ndarray, k: int = 10) -> pd.Series:
    """NDCG@k by request, of those with a purchase among their candidates; equal scores count as ranked last first.

    The ideal order is that of the candidates: retrieval's misses are not the ranker's.
    """
    order = np.lexsort((label_N, -score_N, request_N))  # ties: the unwanted first, so that nothing is gained by them
    frame = pd.DataFrame({"request": request_N[order], "label": label_N[order]})
    place = frame.groupby("request").cumcount().to_numpy()
    gain = np.where(place < k, 1 / np.log2(place + 2), 0)
    found = (frame["label"] * gain).groupby(frame["request"]).sum()
    wanted = frame["label"].groupby(frame["request"]).sum()
    ideal = np.concatenate([[0], np.cumsum(1 / np.log2(np.arange(k) + 2))])[np.minimum(wanted, k).astype(int)]
    return (found / ideal)[wanted > 0]


def quality(frame: pd.DataFrame, score_N: np.ndarray) -> Quality:
    """All figures of one ranker; ``score_N`` are probabilities."""
    label_N, request_N = frame["label"].to_numpy(), frame["request"].to_numpy()
    of_request = ndcg_of_requests(request_N, label_N, score_N)
    user_of = frame.drop_duplicates("request").set_index("request")["user_id"]
    ndcg_U = of_request.groupby(user_of.reindex(of_request.index)).mean()
    both = frame.assign(score=score_N).groupby("user_id").filter(lambda rows: 0 < rows["label"].sum() < len(rows))
    auc_U = both.groupby("user_id")[["label", "score"]].apply(lambda rows: roc_auc_score(rows["label"], rows["score"]))
    return Quality(
        float(of_request.mean()),
        float(roc_auc_score(label_N, score_N)),
        float(log_loss(label_N, np.clip(score_N, 1e-6, 1 - 1e-6))),
        ndcg_U.to_numpy(),
        auc_U.to_numpy(),
    )


def summary(found: list[Quality]) -> dict[str, float | list[float]]:
    """Mean and standard deviation over the seeds, and the interval over households of the seeds' mean."""
    values = {name: np.array([getattr(q, name) for q in found]) for name in ("ndcg", "auc", "log_loss")}
    means = {name: float(v.mean()) for name, v in values.items()}
    deviations = {f"{name}_sd": float(v.std(ddof=1)) if len(v) > 1 else 0.0 for name, v in values.items()}
    interval = bootstrap_interval(np.mean([q.ndcg_U for q in found], axis=0))
    return {**means, **deviations, "ndcg_households": list(interval)}


def gain(better: list[Quality], base: list[Quality]) -> dict[str, float | list[float] | bool]:
    """Difference of two rankers: mean and sd over the seeds, paired interval over households.

    ``outside_noise``: every seed of the one beats every seed of the other, and the interval excludes 0.
    """
    made: dict[str, float | list[float] | bool] = {}
    for name in ("ndcg", "auc"):
        ours, theirs = ([getattr(q, name) for q in qualities] for qualities in (better, base))
        of_households = [np.mean([getattr(q, f"{name}_U") for q in qualities], axis=0) for qualities in (better, base)]
        interval = bootstrap_interval(of_households[0] - of_households[1])
        made[name] = float(np.mean(ours) - np.mean(theirs))
        made[f"{name}_households"] = list(interval)
        made[f"{name}_outside_noise"] = bool(min(ours) > max(theirs) and interval[0] > 0)
    return made
