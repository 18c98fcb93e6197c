"""The three matrix products of a loss, in float32 or on a CPU's bfloat16 unit."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, cast, get_args

import torch
from torch import Tensor

from bseq_plugin.errors import RecipeError
from bseq_plugin.matmul import Matmul, bfloat16_pays, fastest
from bseq_plugin.schema.losses import SequenceLoss
from bseq_plugin.schema.part import OptionsT_co


class Bfloat16Buffers(NamedTuple):
    """Buffers in bfloat16: logits of a chunk, and a chunk's part of the negatives' gradient [N, D], also widened."""

    logits: Tensor
    gradient_ND: Tensor
    widened_ND: Tensor


@dataclass
class Products:
    """Logits of all negatives for a chunk of states, and the gradients that come back.

    Logits are seen as ``[N, C]``. In memory they lie candidate by candidate when they are multiplied in the model's own
    type, state by state when that is bfloat16: each is the layout in which it is fast (``make bench-head``).

    Attributes:
        vectors_ND: the negatives, in the type that is multiplied.
        d_vectors_ND: their gradient so far, in the type of the model; nothing before the first chunk.
        buffer: logits of a chunk, in the type of the model. One for all chunks: fresh pages cost more than arithmetic.
            Empty if they are ``narrow``.
        bfloat16: the buffers in that type, None for products in the model's own type.
        narrow: logits stay in bfloat16.
    """

    vectors_ND: Tensor
    d_vectors_ND: Tensor
    buffer: Tensor
    bfloat16: Bfloat16Buffers | None
    narrow: bool

    @classmethod
    def of(cls, vectors_ND: Tensor, chunk: int, bfloat16: bool, narrow: bool = False) -> Products:
        """Make the buffers for chunks of at most ``chunk`` states; ``bfloat16``, ``narrow``: see the attributes."""
        size = vectors_ND.shape[0] * chunk
        factors_ND = vectors_ND.bfloat16() if bfloat16 else vectors_ND
        buffers = None
        if bfloat16:
            buffers = Bfloat16Buffers(
                factors_ND.new_empty(size), torch.empty_like(factors_ND), torch.empty_like(vectors_ND)
            )
        buffer = vectors_ND.new_empty(0 if narrow else size)
        return cls(factors_ND, torch.empty_like(vectors_ND), buffer, buffers, narrow)

    def logits(self, states_CD: Tensor) -> Tensor:
        """Return ``[N, C]`` in the model's type, or in bfloat16 if they are ``narrow``; valid until the next call."""
        n, c = self.vectors_ND.shape[0], states_CD.shape[0]
        if self.bfloat16 is None:
            return torch.mm(self.vectors_ND, states_CD.T, out=self.buffer[: n * c].view(n, c))
        narrow_CN = torch.mm(states_CD.bfloat16(), self.vectors_ND.T, out=self.bfloat16.logits[: n * c].view(c, n))
        return narrow_CN.T if self.narrow else self.buffer[: n * c].view(c, n).copy_(narrow_CN).T

    def gradients(self, d_logits_NC: Tensor, states_CD: Tensor, out: Tensor, *, first: bool) -> None:
        """Add ``d_logits @ states`` to ``d_vectors_ND``, begun by the ``first``; ``out`` = ``d_logits.T @ vectors``."""
        if self.bfloat16 is None:
            sums_ND = self.d_vectors_ND
            torch.addmm(sums_ND, d_logits_NC, states_CD, beta=0.0 if first else 1.0, out=sums_ND)
            torch.mm(d_logits_NC.T, self.vectors_ND, out=out)
            return
        narrow_CN = d_logits_NC.T
        if not self.narrow:
            narrow_CN = self.bfloat16.logits[: d_logits_NC.numel()].view(narrow_CN.shape).copy_(narrow_CN)
        part_ND = torch.mm(narrow_CN.T, states_CD.bfloat16(), out=self.bfloat16.gradient_ND)
        if first:
            self.d_vectors_ND.copy_(part_ND)
        else:  # widened in a buffer of its own: adding another type makes a copy in fresh memory
            self.d_vectors_ND += self.bfloat16.widened_ND.copy_(part_ND)
        out.copy_(torch.mm(narrow_CN, self.vectors_ND))


def multiplies_in_bfloat16(vectors_ND: Tensor, matmul: str) -> bool:
    """Whether products with these negatives are made in bfloat16, "auto": see ``bfloat16_pays``.

    Raises RecipeError for an unknown ``matmul``.
    """
    if matmul not in get_args(Matmul):
        raise RecipeError(f"matmul = {matmul!r}; choose one of {', '.join(get_args(Matmul))}")
    if matmul != "auto":
        return matmul == "bfloat16"
    return bfloat16_pays(vectors_ND, lambda: bfloat16_gain(vectors_ND.shape[1]))


@cache
def bfloat16_gain(dim: int, n_negatives: int = 8192, chunk: int = 64) -> float:
    """Return the seconds of a chunk's products here in float32, divided by those in bfloat16 with conversions."""
    generator = torch.Generator().manual_seed(0)
    vectors_ND = torch.randn(n_negatives, dim, generator=generator)
    states_CD = torch.randn(chunk, dim, generator=generator)
    seconds = []
    for bfloat16 in (False, True):
        products, out = Products.of(vectors_ND, chunk, bfloat16), torch.empty_like(states_CD)

        def step(products: Products = products, out: Tensor = out) -> None:
            products.gradients(products.logits(states_CD), states_CD, out=out, first=False)

        seconds.append(fastest(step))
    return seconds[0] / seconds[1]


class MatmulLoss(SequenceLoss[OptionsT_co]):
    """A loss whose products may be made in bfloat16; sums are float32."""

    @property
    def matmul(self) -> Matmul:
        """The type of the factors; "auto", measured where it is asked for, until it is settled."""
        return cast(Matmul, self.choices.get("matmul", "auto"))

    def machine_choices(self, dim: int) -> dict[str, Any]:
        """Choose ``matmul``: the type that is faster on this machine."""
        if torch.cuda.is_available():
            return {}
        return {"matmul": "bfloat16" if multiplies_in_bfloat16(torch.empty(1, dim), "auto") else "float32"}
