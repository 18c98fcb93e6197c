"""Whitening of the vectors of item encoders."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

SAMPLE = 100_000  # items that a mean and a covariance are taken of
LEAST = 0.1  # of the mean variance is added to that of each direction


def whitening(vectors_VE: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return (mean float32 [E], axes float32 [E, E]) of the vectors that are not zero.

    Sentence vectors share a large common part and lie in few directions (Su et al., "Whitening Sentence
    Representations", 2021). The directions of most variance come first; those of little are not blown up to 1: what
    they hold is mostly rounding.
    """
    known = np.flatnonzero(vectors_VE.any(1))
    sample = vectors_VE[known[:: max(1, len(known) // SAMPLE)]].astype(np.float64)
    centre_E = sample.mean(0)
    variances, axes_EE = np.linalg.eigh((sample - centre_E).T @ (sample - centre_E) / len(sample))
    scale_E = 1 / np.sqrt(variances.clip(0) + LEAST * variances.mean() + 1e-12)
    return torch.from_numpy(centre_E).float(), torch.from_numpy((axes_EE * scale_E)[:, ::-1].copy()).float()
