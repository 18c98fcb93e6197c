"""Options that the built-in losses share."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bseq_plugin.schema.options import PartOptions


class MatmulOptions(PartOptions):
    """How scores are multiplied out."""

    matmul: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="type of the factors of the matrix products (sums are float32); 'auto' = bfloat16 on a CPU that "
        "measurably gains from it, else float32",
    )
