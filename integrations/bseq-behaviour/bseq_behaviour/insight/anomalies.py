"""Users who lately behave unlike themselves: another account holder, a burst, other hours.

The signals of a window (``signals.py``) become p-values against clean windows of the past (conformal prediction:
Vovk, Gammerman and Shafer 2005), so that the threshold keeps the false-alarm rate that is asked for, as long as clean
behaviour stays what it was.

Shape letters: N users in question, S signals, M windows compared with.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

import bseq_plugin as bseq
from bseq_behaviour.columns import ITEM, TIME, USER
from bseq_behaviour.insight.signals import SIGNALS, Signals, Window, window_signals

TASTE_WEIGHT = 0.75


def p_values(values_N: np.ndarray, clean_M: np.ndarray) -> np.ndarray:
    """float64 [N], (1 + how many clean ones are at least as large) / (M + 1): no more than a share p of clean ones has
    p or less, if they are exchangeable.
    """
    larger_N = len(clean_M) - np.searchsorted(np.sort(clean_M), values_N, side="left")
    return (1 + larger_N) / (len(clean_M) + 1)


@dataclass(frozen=True)
class Detector:
    """Clean signals that users are compared with.

    Attributes:
        reference_MS: signals of clean windows, the scale of each signal.
        calibration_M: combined scores of other clean windows, for the threshold.
    """

    window: Window
    reference_MS: np.ndarray
    calibration_M: np.ndarray

    @classmethod
    def fit(
        cls,
        model: bseq.InterestModel,
        log: bseq.Sequences,
        at_us: int,
        window: Window | None = None,
        n_windows: int = 4,
        allow_future_model: bool = False,
    ) -> Detector:
        """From the ``n_windows`` windows that end one window before ``at_us`` and earlier, taken to be clean.

        Every second one is the reference, the others calibrate.

        Raises:
            SchemaError: nobody can be judged in these windows.
            UsageError: the model was trained on them.
        """
        window = window or Window()
        if n_windows < 2:
            raise bseq.UsageError(f"n_windows = {n_windows}; give 2 or more")
        ends = [at_us - place * window.length_us for place in range(1, n_windows + 1)]
        windows = [window_signals(model, log, end, window, allow_future_model).values_NS for end in ends]
        reference_MS, calibration_MS = np.concatenate(windows[1::2]), np.concatenate(windows[0::2])
        if not len(reference_MS) or not len(calibration_MS):
            raise bseq.SchemaError(
                f"nobody has {window.min_events} events in a window of {window.days:g} days and {window.min_history} "
                "before it, in the windows that are to show what is normal; take longer windows, or lower the limits"
            )
        return cls(window, reference_MS, combined(calibration_MS, reference_MS))

    def score(self, signals: Signals) -> np.ndarray:
        """float64 [N], larger is odder; see ``combined``."""
        return combined(signals.values_NS, self.reference_MS)

    def p_values(self, signals: Signals) -> np.ndarray:
        """float64 [N]: flagging p <= rate raises a false alarm for a share ``rate`` of clean users."""
        return p_values(self.score(signals), self.calibration_M)


def combined(values_NS: np.ndarray, reference_MS: np.ndarray) -> np.ndarray:
    """float64 [N], the oddest of taste (surprise and distance together), burst and hours, in -ln p.

    Surprise and distance say much the same of a window; ``TASTE_WEIGHT`` brings their sum to the scale of one of them.
    A little of all of them (Fisher's sum) breaks ties between windows that are all odder than the reference.
    """
    odd_NS = -np.log(signal_p_values(values_NS, reference_MS))
    taste_N = TASTE_WEIGHT * (odd_NS[:, 0] + odd_NS[:, 1])
    score_N: np.ndarray = np.maximum(taste_N, odd_NS[:, 2:].max(1)) + 0.05 * odd_NS.sum(1)
    return score_N


def signal_p_values(values_NS: np.ndarray, reference_MS: np.ndarray) -> np.ndarray:
    """float64 [N, S], of each signal against the reference's."""
    return np.stack([p_values(values_NS[:, s], reference_MS[:, s]) for s in range(values_NS.shape[1])], axis=1)


def anomalies(log: bseq.Sequences, signals: Signals, detector: Detector, rate: float) -> pd.DataFrame:
    """user_id, the signals, ``p_value``, ``flagged``, ``leading`` (the oddest signal); the oddest user first.

    Raises UsageError unless 0 < ``rate`` < 1.
    """
    if not 0 < rate < 1:
        raise bseq.UsageError(f"false-alarm rate {rate}; give a share between 0 and 1")
    p_N = detector.p_values(signals)
    p_NS = signal_p_values(signals.values_NS, detector.reference_MS)
    table = pd.DataFrame({USER: log.user_ids[signals.users]})
    table = table.assign(**{name: signals.values_NS[:, s] for s, name in enumerate(SIGNALS)})
    table = table.assign(p_value=p_N, flagged=p_N <= rate, leading=np.array(SIGNALS)[p_NS.argmin(1)])
    return table.iloc[np.argsort(-detector.score(signals), kind="stable")].reset_index(drop=True)


def anomalous_events(log: bseq.Sequences, model: bseq.InterestModel, signals: Signals) -> pd.DataFrame:
    """user_id, item_id, timestamp, surprise of every event in the windows."""
    ids = np.concatenate([[None], model.vocabulary.item_ids])
    return pd.DataFrame(
        {
            USER: log.user_ids[signals.event_users],
            ITEM: ids[signals.event_items],
            TIME: pd.to_datetime(signals.event_times, unit="us", utc=True),
            "surprise": signals.event_surprise,
        }
    )
