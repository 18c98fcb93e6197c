"""The options that the built-in losses share."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from typing_extensions import TypeVar

from bseq_plugin.losses.precision import multiplies_in_bfloat16
from bseq_plugin.matmul import Matmul
from bseq_plugin.schema.losses import SequenceLoss
from bseq_plugin.schema.options import PartOptions


class MatmulOptions(PartOptions):
    """The type in which scores are multiplied."""

    matmul: Matmul = Field(
        "auto",
        description="type of the factors of the matrix products (sums are float32); 'auto' = bfloat16 on a CPU that "
        "measurably gains from it, else float32",
    )


MatmulOptionsT_co = TypeVar("MatmulOptionsT_co", bound=MatmulOptions, default=MatmulOptions, covariant=True)


class MatmulLoss(SequenceLoss[MatmulOptionsT_co]):
    """A loss whose products may be made in bfloat16."""

    def machine_choices(self, dim: int) -> dict[str, Any]:
        """Choose ``matmul`` where it is "auto": the type that is faster on this machine."""
        if self.options.matmul != "auto" or torch.cuda.is_available():
            return {}
        return {"matmul": "bfloat16" if multiplies_in_bfloat16(torch.empty(1, dim), "auto") else "float32"}
