"""Segments of users: clusters of their vectors, described by what their members do more than others.

Shape letters: U users, D width, C segments, V items, G categories.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment

import bseq_plugin as bseq
from bseq_behaviour.columns import USER

N_ITERATIONS, N_REDO = 40, 5
PSEUDO_COUNT = 20.0  # events of the crowd added to a segment, so that a handful of events is no lift


@dataclass(frozen=True)
class Segments:
    """A clustering.

    Attributes:
        user_ids: [U].
        segment_U: int64, 0..C-1; the number means the same from one refresh to the next.
        distance_U: float32, 1 - cosine of a user's vector and their segment's centre.
        centres_CD: float32, of length 1.
    """

    user_ids: np.ndarray
    segment_U: np.ndarray
    distance_U: np.ndarray
    centres_CD: np.ndarray

    @property
    def n_segments(self) -> int:
        """C."""
        return len(self.centres_CD)

    def frame(self) -> pd.DataFrame:
        """user_id, segment, distance."""
        return pd.DataFrame({USER: self.user_ids, "segment": self.segment_U, "distance": self.distance_U})


def segment_users(
    model: bseq.InterestModel,
    log: bseq.Sequences,
    n_segments: int,
    *,
    min_events: int = 5,
    previous: pd.DataFrame | None = None,
    seed: int = 0,
) -> tuple[Segments, bseq.Sequences]:
    """Cluster the users of a log by their interests; return the segments and the histories of those who are in one.

    Args:
        min_events: users with fewer events of known items are left out.
        previous, seed: see ``fit_segments``.

    Raises UsageError for ``min_events`` below 1, or fewer users than segments; else as ``fit_segments``.
    """
    if min_events < 1:
        raise bseq.UsageError(f"min_events = {min_events}; give 1 or more")
    histories = log.take(np.flatnonzero(log.known().lengths >= min_events))
    if histories.n_users < n_segments:
        raise bseq.UsageError(
            f"{histories.n_users} users have {min_events} events; ask for fewer segments than {n_segments}"
        )
    # without the popularity columns: how much one follows the crowd is no taste
    vectors_UD = model.encode(histories)[:, :, : model.recipe.vectors.table_dim].flatten(1).numpy()
    return fit_segments(histories.user_ids, vectors_UD, n_segments, previous, seed), histories


def fit_segments(
    user_ids: np.ndarray, vectors_UD: np.ndarray, n_segments: int, previous: pd.DataFrame | None = None, seed: int = 0
) -> Segments:
    """Spherical k-means by FAISS: users by the direction of their vectors.

    Args:
        vectors_UD: float32; a user whose vector is zero points nowhere and is refused.
        previous: user_id and segment of the last refresh. The clustering begins at the means of the *new* vectors of
            the old segments' members, so that a new model may have other axes, and keeps their numbers.

    Raises:
        UsageError: more segments than users, fewer than one, or a ``previous`` with other numbers or no user in common.
        SchemaError: a vector that is zero or not finite.
        MissingDependencyError: FAISS is not installed.
    """
    if not 1 <= n_segments <= len(user_ids):
        raise bseq.UsageError(
            f"{n_segments} segments of {len(user_ids)} users; give a number from 1 to the number of users"
        )
    vectors_UD = np.ascontiguousarray(vectors_UD, np.float32)
    lengths_U1 = np.linalg.norm(vectors_UD, axis=1, keepdims=True)
    bad_U = ~np.isfinite(lengths_U1[:, 0]) | (lengths_U1[:, 0] < 1e-12)
    if bad_U.any():
        raise bseq.SchemaError(
            f"the vectors of {int(bad_U.sum())} users are zero or not finite, for example of "
            f"{user_ids[bad_U][:5].tolist()}; leave users without events out"
        )
    unit_UD = vectors_UD / lengths_U1
    begin_CD = None if previous is None else _centres_of(previous, user_ids, unit_UD, n_segments)
    centres_CD = _k_means(unit_UD, n_segments, begin_CD, seed)
    similar_UC = unit_UD @ centres_CD.T
    segment_U = similar_UC.argmax(1)
    order_C = _numbering(segment_U, n_segments, previous, user_ids)
    segment_U = order_C[segment_U]
    return Segments(user_ids, segment_U, (1 - similar_UC.max(1)).astype(np.float32), centres_CD[np.argsort(order_C)])


def _k_means(unit_UD: np.ndarray, n_segments: int, begin_CD: np.ndarray | None, seed: int) -> np.ndarray:
    try:
        import faiss
    except ImportError as error:
        raise bseq.MissingDependencyError("segments need FAISS: pip install 'bseq-plugin[cpu]'") from error
    # FAISS asks for 39 points a cluster before it is content, and says so on standard output
    k_means = faiss.Kmeans(
        unit_UD.shape[1], n_segments, niter=N_ITERATIONS, nredo=1 if begin_CD is not None else N_REDO, spherical=True,
        seed=seed + 1, min_points_per_centroid=1, max_points_per_centroid=max(256, len(unit_UD)),
    )  # fmt: skip
    k_means.train(unit_UD, init_centroids=begin_CD)
    found_CD = np.asarray(k_means.centroids, np.float32)
    centres_CD: np.ndarray = found_CD / np.linalg.norm(found_CD, axis=1, keepdims=True).clip(1e-12)
    return centres_CD


def _centres_of(previous: pd.DataFrame, user_ids: np.ndarray, unit_UD: np.ndarray, n_segments: int) -> np.ndarray:
    """float32 [C, D], means of the members' new vectors; a segment without a member left begins at an odd user."""
    if not {USER, "segment"} <= set(previous.columns):
        raise bseq.UsageError(f"the earlier segments have columns {list(previous.columns)}; give user_id and segment")
    numbers = np.unique(previous["segment"])
    if numbers.min(initial=0) < 0 or numbers.max(initial=0) >= n_segments:
        raise bseq.UsageError(
            f"the earlier segments are numbered {numbers.min()}..{numbers.max()}, asked are {n_segments}; keep their "
            "number, or begin anew without them"
        )
    old_U = previous.drop_duplicates(USER).set_index(USER)["segment"].reindex(user_ids).to_numpy(np.float64)
    known_U = np.isfinite(old_U)
    if not known_U.any():
        raise bseq.UsageError("no user of the earlier segments is among these; begin anew without them")
    sums_CD = np.zeros((n_segments, unit_UD.shape[1]))
    np.add.at(sums_CD, old_U[known_U].astype(np.int64), unit_UD[known_U])
    empty_C = np.linalg.norm(sums_CD, axis=1) < 1e-9
    if empty_C.any():  # whoever is farthest from all that there is
        farthest = np.argsort((unit_UD @ sums_CD[~empty_C].T).max(1), kind="stable")
        sums_CD[empty_C] = unit_UD[farthest[: int(empty_C.sum())]]
    return np.ascontiguousarray(sums_CD / np.linalg.norm(sums_CD, axis=1, keepdims=True), np.float32)


def _numbering(
    segment_U: np.ndarray, n_segments: int, previous: pd.DataFrame | None, user_ids: np.ndarray
) -> np.ndarray:
    """int64 [C], the number that each cluster gets: the largest first, or by the most members in common."""
    if previous is None:
        sizes_C = np.bincount(segment_U, minlength=n_segments)
        order_C = np.empty(n_segments, np.int64)
        order_C[np.argsort(-sizes_C, kind="stable")] = np.arange(n_segments)
        return order_C
    old_U = previous.drop_duplicates(USER).set_index(USER)["segment"].reindex(user_ids).to_numpy(np.float64)
    known_U = np.isfinite(old_U)
    common_CC = np.zeros((n_segments, n_segments), np.int64)
    np.add.at(common_CC, (segment_U[known_U], old_U[known_U].astype(np.int64)), 1)
    return np.asarray(linear_sum_assignment(-common_CC)[1], np.int64)


def adjusted_rand_index(first_U: np.ndarray, second_U: np.ndarray) -> float:
    """Agreement of two clusterings of the same users: 1 for the same, about 0 for chance.

    Source: Hubert and Arabie, Journal of Classification 1985. Raises UsageError for different or fewer than 2 users.
    """
    if len(first_U) != len(second_U) or len(first_U) < 2:
        raise bseq.UsageError(
            f"clusterings of {len(first_U)} and {len(second_U)} users; give the same two users or more"
        )
    table = pd.crosstab(first_U, second_U).to_numpy()

    def pairs(counts: np.ndarray) -> float:
        return float((counts * (counts - 1) / 2).sum())

    both, rows, columns = pairs(table), pairs(table.sum(1)), pairs(table.sum(0))
    expected = rows * columns / pairs(np.array([len(first_U)]))
    largest = (rows + columns) / 2
    return 1.0 if largest == expected else (both - expected) / (largest - expected)


def describe_segments(
    log: bseq.Sequences, segment_U: np.ndarray, n_segments: int, code_V: np.ndarray, names: np.ndarray, n_names: int = 5
) -> pd.DataFrame:
    """What each segment does more than the crowd: segment, rank, name, share, lift.

    ``share`` is the part of a segment's events, ``lift`` that over the crowd's share, with ``PSEUDO_COUNT`` events of
    the crowd added to the segment. Ranked by share x log(lift), what it adds to the Kullback-Leibler divergence from
    the crowd: typical, not merely rare.

    Args:
        log: the histories of U users.
        code_V: int64 [V + 1], place in ``names`` of each vocabulary row, -1 for what is not counted.
        names: [G], of items or categories.
    """
    codes_T = code_V[log.items]
    kept_T = codes_T >= 0
    flat = segment_U[log.user_index[kept_T]] * len(names) + codes_T[kept_T]
    counts_CG = np.bincount(flat, minlength=n_segments * len(names)).reshape(n_segments, len(names)).astype(np.float64)
    crowd_G = counts_CG.sum(0) / max(counts_CG.sum(), 1)
    totals_C1 = counts_CG.sum(1, keepdims=True)
    share_CG = (counts_CG + PSEUDO_COUNT * crowd_G) / (totals_C1 + PSEUDO_COUNT)
    lift_CG = np.divide(share_CG, crowd_G, out=np.ones_like(share_CG), where=crowd_G > 0)
    typical_CG = share_CG * np.log(np.maximum(lift_CG, 1e-12))
    rows = []
    for segment in range(n_segments):
        best = np.argsort(-typical_CG[segment], kind="stable")[:n_names]
        for rank, place in enumerate(best[lift_CG[segment, best] > 1], 1):
            rows.append((segment, rank, names[place], share_CG[segment, place], lift_CG[segment, place]))
    return pd.DataFrame(rows, columns=["segment", "rank", "name", "share", "lift"])
