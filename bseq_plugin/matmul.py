"""A part multiplies in bfloat16 where that is measured to pay on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Matmul = Literal["auto", "float32", "bfloat16"]
NARROWEST = 32  # below this width conversions cost as much as the products
WORTH_IT = 1.15  # a measured gain below this is noise, and the extra rounding is not worth it


def bfloat16_pays(x: Tensor, gain: Callable[[], float]) -> bool:
    """Whether products with ``x`` [..., D] are better made in bfloat16: on a CPU that has instructions for it, for
    float32 of some width, if ``gain()``, the measured seconds in float32 divided by those in bfloat16, says that it
    pays.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32 or x.shape[-1] < NARROWEST:
        return False
    return _has_bfloat16_unit() and gain() > WORTH_IT


def _has_bfloat16_unit() -> bool:
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def fastest(step: Callable[[], object], repeats: int = 7) -> float:
    """Seconds of the fastest call."""
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        step()
        taken.append(time.perf_counter() - started)
    return min(taken)
