"""How unlike their own past users are in a window of days: surprise, distance, burst, hours.

Shape letters: N users in question, T events, K interests, D width, V items, S signals, M windows compared with.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import bseq_plugin as bseq
from bseq_behaviour.columns import DAY_US
from bseq_behaviour.propensity.vectors import check_instant

SIGNALS = ("surprise", "distance", "burst", "hours")
HOUR_US, N_HOURS = DAY_US // 24, 24
PERSONAL_SHARE = 0.5  # of the mixture that an event's surprise is measured with; the rest is the model's softmax
CROWD_VISITS = 10.0  # visits of the crowd added to a user's hours
PAST_WINDOWS = 12  # a burst is measured against so many windows before
USERS_PER_CALL = 256


@dataclass(frozen=True)
class Window:
    """What is judged: events in [at - days, at), of users with enough of them and enough before.

    ``min_events`` and ``min_history``: fewer say nothing about anybody.
    """

    days: float = 14.0
    min_events: int = 5
    min_history: int = 20

    def __post_init__(self) -> None:
        if not (np.isfinite(self.days) and self.days > 0) or self.min_events < 1 or self.min_history < 1:
            raise bseq.UsageError(f"{self}; days, min_events and min_history are positive")

    @property
    def length_us(self) -> int:
        """Microseconds."""
        return round(self.days * DAY_US)


@dataclass(frozen=True)
class Signals:
    """How unlike themselves users are in a window; larger is odder.

    Attributes:
        users: int64 [N], places in the log.
        values_NS: float64, in the order of ``SIGNALS``.
        event_users, event_items, event_times: [T] int64, the events of the windows.
        event_surprise: float64 [T], -ln of the chance of each event's item, NaN for an item that the model lacks.
    """

    users: np.ndarray
    values_NS: np.ndarray
    event_users: np.ndarray
    event_items: np.ndarray
    event_times: np.ndarray
    event_surprise: np.ndarray


def window_signals(
    model: bseq.InterestModel, log: bseq.Sequences, at_us: int, window: Window, allow_future_model: bool = False
) -> Signals:
    """The signals of everybody who can be judged at ``at_us``; the model may know nothing of the window itself.

    surprise: mean -ln chance of the window's items, half the model's softmax, half the user's own share of the item.
    distance: 1 - cosine of the interest that the window alone makes and the one before it.
    burst: how far the number of events, or the most in one hour, lies above the user's windows before, in deviations.
    hours: mean -ln chance of the visits' hours of the day, UTC, under the user's own hours.

    Raises:
        SchemaError: the log has no times.
        UsageError: the model was trained on the window.
    """
    if log.timestamps is None:
        raise bseq.SchemaError("anomalies are of a window of days: they need a log with times")
    start_us = at_us - window.length_us
    check_instant(model, start_us, allow_future_model)
    known = log.known_at(at_us)
    before, inside = known.between(None, start_us), known.between(start_us, None)
    users = np.flatnonzero((before.lengths >= window.min_history) & (inside.lengths >= window.min_events))
    past, now = before.take(users), inside.take(users)
    interests_NKD = model.encode(past)
    surprise_T = event_surprise(model, interests_NKD, past, now)
    values_NS = np.stack(
        [
            _mean_of_known(surprise_T, now),
            _distance(interests_NKD, model.encode(now)),
            _burst(past, now, start_us, window.length_us),
            _odd_hours(past, now, before),
        ],
        axis=1,
    )
    return Signals(users, values_NS, users[now.user_index], now.items, np.asarray(now.timestamps), surprise_T)


def event_surprise(
    model: bseq.InterestModel, interests_NKD: Tensor, past: bseq.Sequences, now: bseq.Sequences
) -> np.ndarray:
    """float64 [T] of ``now``: -ln((1 - w) softmax + w own share), w = ``PERSONAL_SHARE``; NaN for unknown items."""
    n_items = model.vocabulary.n_items
    chance_T = np.full(now.n_events, np.nan)
    vectors_DV = model.item_vectors_VD[1:].T
    for start in range(0, now.n_users, USERS_PER_CALL):
        stop = min(start + USERS_PER_CALL, now.n_users)
        chosen = slice(int(now.offsets[start]), int(now.offsets[stop]))
        rows, items = now.user_index[chosen] - start, now.items[chosen]
        with torch.no_grad():
            softmax_BV = torch.softmax((interests_NKD[start:stop] @ vectors_DV).amax(1), dim=1).numpy()
        known = items > 0
        chances = np.full(len(items), np.nan)
        chances[known] = softmax_BV[rows[known], items[known] - 1]
        chance_T[chosen] = chances
    keys_P, counts_P = np.unique(past.user_index * (n_items + 1) + past.items, return_counts=True)
    wanted_T = now.user_index * (n_items + 1) + now.items
    place_T = np.searchsorted(keys_P, wanted_T).clip(max=max(len(keys_P) - 1, 0))
    own_T = np.where(keys_P[place_T] == wanted_T, counts_P[place_T], 0) / np.maximum(past.lengths[now.user_index], 1)
    surprise: np.ndarray = -np.log((1 - PERSONAL_SHARE) * chance_T + PERSONAL_SHARE * own_T)
    return surprise


def _mean_of_known(values_T: np.ndarray, now: bseq.Sequences) -> np.ndarray:
    """float64 [N]; 0 for a user whose window has no known item: nothing can be said."""
    known_T = np.isfinite(values_T)
    sums_N = np.bincount(now.user_index[known_T], values_T[known_T], minlength=now.n_users)
    mean_N: np.ndarray = sums_N / np.maximum(np.bincount(now.user_index[known_T], minlength=now.n_users), 1)
    return mean_N


def _distance(before_NKD: Tensor, now_NKD: Tensor) -> np.ndarray:
    """float64 [N], each interest of the window against the nearest before it, the mean over them."""
    before, now = (torch.nn.functional.normalize(x.double(), dim=-1) for x in (before_NKD, now_NKD))
    distance: np.ndarray = (1 - (now @ before.transpose(1, 2)).amax(2)).mean(1).numpy()
    return distance


def _burst(past: bseq.Sequences, now: bseq.Sequences, start_us: int, length_us: int) -> np.ndarray:
    """float64 [N], the larger of two: events of the window, and of its fullest hour, in deviations from before."""
    age_T = (start_us - 1 - np.asarray(past.timestamps)) // length_us
    kept_T = age_T < PAST_WINDOWS
    flat = past.user_index[kept_T] * PAST_WINDOWS + age_T[kept_T]
    counts_NM = np.bincount(flat, minlength=past.n_users * PAST_WINDOWS).reshape(-1, PAST_WINDOWS)
    oldest_N = np.asarray(past.timestamps)[past.offsets[:-1]]
    there_NM = np.arange(PAST_WINDOWS) <= ((start_us - 1 - oldest_N) // length_us)[:, None]
    of_windows = _deviations(np.log1p(now.lengths), np.log1p(counts_NM), there_NM)
    hours_NM = _fullest_hours(past, age_T, kept_T)
    hour_now_N = _fullest_hours(now, np.zeros(now.n_events, np.int64), np.ones(now.n_events, bool))[:, 0]
    of_hours = _deviations(np.log1p(hour_now_N), np.log1p(hours_NM), there_NM & (hours_NM > 0))
    burst: np.ndarray = np.maximum(of_windows, of_hours)
    return burst


def _deviations(now_N: np.ndarray, past_NM: np.ndarray, there_NM: np.ndarray) -> np.ndarray:
    """How far above the mean of what is there, in deviations; 0.3 stands for what a short past does not show."""
    n_N = np.maximum(there_NM.sum(1), 1)
    mean_N = np.where(there_NM, past_NM, 0).sum(1) / n_N
    deviation_N = np.sqrt(np.where(there_NM, (past_NM - mean_N[:, None]) ** 2, 0).sum(1) / n_N)
    deviations: np.ndarray = (now_N - mean_N) / (deviation_N + 0.3)
    return deviations


def _fullest_hours(histories: bseq.Sequences, age_T: np.ndarray, kept_T: np.ndarray) -> np.ndarray:
    """int64 [N, M], the most events in one hour of the clock, by window."""
    hours = np.asarray(histories.timestamps)[kept_T] // HOUR_US
    windows = histories.user_index[kept_T] * PAST_WINDOWS + age_T[kept_T]
    first = hours.min() if len(hours) else 0
    span = int(hours.max() - first) + 1 if len(hours) else 1
    keys, counts = np.unique(windows * span + hours - first, return_counts=True)
    fullest = np.zeros(histories.n_users * PAST_WINDOWS, np.int64)
    np.maximum.at(fullest, keys // span, counts)
    return fullest.reshape(-1, PAST_WINDOWS)


def _odd_hours(past: bseq.Sequences, now: bseq.Sequences, everybody: bseq.Sequences) -> np.ndarray:
    """float64 [N]; a visit is an instant with events, however many."""
    crowd_H = _hours(everybody).sum(0)
    own_NH = _hours(past) + CROWD_VISITS * crowd_H / max(crowd_H.sum(), 1e-12)
    # an hour early or late is no other habit
    smooth_NH = (np.roll(own_NH, 1, 1) + 2 * own_NH + np.roll(own_NH, -1, 1)) / 4
    chance_NH = smooth_NH / smooth_NH.sum(1, keepdims=True)
    visits_NH = _hours(now)
    odd: np.ndarray = -(visits_NH * np.log(np.maximum(chance_NH, 1e-6))).sum(1) / np.maximum(visits_NH.sum(1), 1)
    return odd


def _hours(histories: bseq.Sequences) -> np.ndarray:
    """float64 [N, 24], visits by hour of the day."""
    times, users = np.asarray(histories.timestamps), histories.user_index
    # oldest first within a user: a visit begins where the user or the time changes
    begins = np.ones(len(times), bool)
    begins[1:] = (np.diff(times) != 0) | (np.diff(users) != 0)
    flat = users[begins] * N_HOURS + (times[begins] // HOUR_US) % N_HOURS
    return np.bincount(flat, minlength=histories.n_users * N_HOURS).reshape(-1, N_HOURS).astype(np.float64)
