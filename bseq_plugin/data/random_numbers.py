"""Random numbers that are a function of (seed, epoch) or (seed, epoch, step), the same on every rank."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

# numpy pads a seed with zeros: without tags, [seed, epoch] and [seed, epoch, 0] would be one stream
ORDER_STREAM, STEP_STREAM = 1, 2

# gives the generator of a step, the same one at every call
RandomNumbers = Callable[[], np.random.Generator]


def step_random(seed: int, epoch: int, step: int) -> RandomNumbers:
    """Return a function that makes the step's generator when it is first called: that takes half as long as a batch,
    and most steps draw nothing.
    """
    return cache(lambda: np.random.default_rng([seed, STEP_STREAM, epoch, step]))
