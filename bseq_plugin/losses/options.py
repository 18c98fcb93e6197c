"""What the built-in losses share."""

from __future__ import annotations

from typing import Any, cast

import torch

from bseq_plugin.losses.precision import multiplies_in_bfloat16
from bseq_plugin.matmul import Matmul
from bseq_plugin.schema.losses import SequenceLoss
from bseq_plugin.schema.part import OptionsT_co


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
