"""How well scores tell yes from no: area under the ROC curve, average precision.

Shape letters: N rows.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

import bseq_plugin as bseq


def auroc(labels_N: np.ndarray, scores_N: np.ndarray) -> float:
    """The chance that a yes has a higher score than a no; equal scores count half.

    Raises SchemaError if all labels are the same.
    """
    n_yes, n_no = _counts(labels_N)
    ranks_N = rankdata(scores_N)
    return float((ranks_N[labels_N > 0].sum() - n_yes * (n_yes + 1) / 2) / (n_yes * n_no))


def average_precision(labels_N: np.ndarray, scores_N: np.ndarray) -> float:
    """Mean over the yes rows of the precision among all rows with at least that score. Raises as ``auroc``."""
    n_yes, _ = _counts(labels_N)
    order = np.argsort(-scores_N, kind="stable")
    found_N = np.cumsum(labels_N[order] > 0)
    ends = np.append(np.flatnonzero(np.diff(scores_N[order])), len(order) - 1)  # rows of one score come together
    recalled = np.diff(found_N[ends], prepend=0) / n_yes
    return float((recalled * found_N[ends] / (ends + 1)).sum())


def _counts(labels_N: np.ndarray) -> tuple[int, int]:
    n_yes = int((labels_N > 0).sum())
    if n_yes in (0, len(labels_N)):
        raise bseq.SchemaError(
            f"all {len(labels_N)} labels are {'yes' if n_yes else 'no'}: no score can tell them apart"
        )
    return n_yes, len(labels_N) - n_yes
