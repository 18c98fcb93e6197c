"""The three matrix products of a loss, in float32 or on a CPU's bfloat16 unit."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from bseq_plugin.errors import RecipeError

MATMULS = ("auto", "float32", "bfloat16")
NARROWEST = 32  # below this width conversions cost as much as the products
WORTH_IT = 1.15  # a measured gain below this is noise, and the extra rounding is not worth it


@dataclass
class Products:
    """Logits of all candidates for a chunk of states, and the gradients that come back.

    Logits are seen as ``[N, C]``. In memory they lie candidate by candidate when they are multiplied in the model's own
    type, state by state when that is bfloat16: each is the layout in which it is fast (``benchmarks/head.py``).

    Attributes:
        vectors_ND: the candidates, in the type that is multiplied.
        d_vectors_ND: their gradient so far, in the type of the model.
        buffer: logits of a chunk, in the type of the model. One for all chunks: fresh pages cost more than arithmetic.
            None if they stay in bfloat16.
        half_buffer, half_gradient: the same in bfloat16, and a chunk's part of ``d_vectors_ND``; None for products in
            the model's own type.
    """

    vectors_ND: Tensor
    d_vectors_ND: Tensor
    buffer: Tensor | None
    half_buffer: Tensor | None
    half_gradient: Tensor | None

    @classmethod
    def of(cls, vectors_ND: Tensor, chunk: int, halves: bool, narrow: bool = False) -> Products:
        """For chunks of at most ``chunk`` states; in bfloat16 with ``halves``, and ``narrow`` logits too."""
        size = vectors_ND.shape[0] * chunk
        return cls(
            vectors_ND.bfloat16() if halves else vectors_ND,
            torch.zeros_like(vectors_ND),
            None if narrow else vectors_ND.new_empty(size),
            vectors_ND.new_empty(size, dtype=torch.bfloat16) if halves else None,
            torch.empty_like(vectors_ND, dtype=torch.bfloat16) if halves else None,
        )

    def logits(self, states_CD: Tensor) -> Tensor:
        """``[N, C]`` in the model's type, or as they are multiplied if there is no ``buffer``; until the next call."""
        n, c = self.vectors_ND.shape[0], states_CD.shape[0]
        if self.half_buffer is None:
            return torch.mm(self.vectors_ND, states_CD.T, out=self._wide(n, c))
        halves_CN = torch.mm(states_CD.bfloat16(), self.vectors_ND.T, out=self.half_buffer[: n * c].view(c, n))
        return halves_CN.T if self.buffer is None else self._wide(c, n).copy_(halves_CN).T

    def _wide(self, rows: int, columns: int) -> Tensor:
        assert self.buffer is not None
        return self.buffer[: rows * columns].view(rows, columns)

    def gradients(self, d_logits_NC: Tensor, states_CD: Tensor, out: Tensor) -> None:
        """Add ``d_logits @ states`` to ``d_vectors_ND``; put ``d_logits.T @ vectors`` into ``out`` [C, D]."""
        if self.half_buffer is None:
            self.d_vectors_ND.addmm_(d_logits_NC, states_CD)
            torch.mm(d_logits_NC.T, self.vectors_ND, out=out)
            return
        halves_CN = d_logits_NC.T
        if self.buffer is not None:
            halves_CN = self.half_buffer[: d_logits_NC.numel()].view(halves_CN.shape).copy_(halves_CN)
        assert self.half_gradient is not None
        self.d_vectors_ND += torch.mm(halves_CN.T, states_CD.bfloat16(), out=self.half_gradient)
        out.copy_(torch.mm(halves_CN, self.vectors_ND))


def multiplies_in_halves(vectors_ND: Tensor, matmul: str) -> bool:
    """Whether products with these candidates are made in bfloat16. Raises RecipeError for an unknown ``matmul``.

    "auto" takes it on a CPU that has instructions for it and measurably gains from them with this width.
    """
    if matmul not in MATMULS:
        raise RecipeError(f"matmul = {matmul!r}; choose one of {', '.join(MATMULS)}")
    return matmul == "bfloat16" or (matmul == "auto" and _halves_pay(vectors_ND))


def _halves_pay(vectors_ND: Tensor) -> bool:
    if vectors_ND.device.type != "cpu" or vectors_ND.dtype != torch.float32 or vectors_ND.shape[1] < NARROWEST:
        return False
    return _has_bfloat16_unit() and bfloat16_gain(vectors_ND.shape[1]) > WORTH_IT


def _has_bfloat16_unit() -> bool:
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


@cache
def bfloat16_gain(dim: int, n_candidates: int = 8192, chunk: int = 64) -> float:
    """Seconds of a chunk's products in float32 divided by those in bfloat16, conversions included, on this machine."""
    generator = torch.Generator().manual_seed(0)
    vectors_ND = torch.randn(n_candidates, dim, generator=generator)
    states_CD = torch.randn(chunk, dim, generator=generator)
    seconds = []
    for halves in (False, True):
        products, out = Products.of(vectors_ND, chunk, halves), torch.empty_like(states_CD)

        def step(products: Products = products, out: Tensor = out) -> None:
            products.gradients(products.logits(states_CD), states_CD, out=out)

        seconds.append(_fastest(step))
    return seconds[0] / seconds[1]


def _fastest(step: Callable[[], None], repeats: int = 7) -> float:
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        step()
        taken.append(time.perf_counter() - started)
    return min(taken)
