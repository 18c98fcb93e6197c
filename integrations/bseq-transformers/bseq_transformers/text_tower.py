"""From item texts to rows of an item table: a Transformer and a projection, which ``item_tuning`` tunes.

Shape letters: N items with known rows, U texts, D width of the item table, E width of the Transformer, L tokens.
"""

from __future__ import annotations

from typing import Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

import bseq_plugin as bseq
from bseq_transformers.backbone import DEFAULT, best_dtype, open_backbone
from bseq_transformers.text import encodable, pooled
from bseq_transformers.tuning import Method, tuned

RIDGE = 0.1  # of the mean variance, on each direction's


class ItemTuningOptions(bseq.PartOptions):
    """Options of ``ItemTextTuner``."""

    columns: tuple[str, ...] = Field(
        ("text",), min_length=1, description="columns of the items table, joined by commas"
    )
    model: str = Field(DEFAULT, description="a directory in the form of save_pretrained, or the installed default")
    pooling: Literal["mean", "cls"] = Field("mean", description="mean of the tokens, or the first one")
    max_tokens: int = Field(32, ge=4, description="the rest of a longer text is not read while tuning")
    method: Method = Field("lora", description="what learns beside the projection")
    rank: int = Field(8, ge=1, description="of LoRA")
    batch: int = Field(64, ge=2, description="pairs of a step")
    steps: int = Field(500, ge=1)
    learning_rate: float | None = Field(
        None, gt=0, description="of AdamW, after a short warm-up falling to 0; default: 5e-4 for LoRA, 1e-4 for the "
        "last layer, 5e-5 for all"
    )  # fmt: skip
    projection_learning_rate: float = Field(1e-3, gt=0)
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of matrix products; weights stay float32. auto = bfloat16 where the CPU has it"
    )
    checkpoint_steps: int = Field(100, ge=1, description="steps that a killed process loses at most")
    seed: int = Field(0, ge=0)


class TextTower(nn.Module):
    """Texts to rows of the item table: the Transformer's pooled states, of length 1, projected."""

    def __init__(self, options: ItemTuningOptions, projection: nn.Linear) -> None:
        super().__init__()
        backbone = open_backbone(options.model)
        self.options = options
        self.checksum = backbone.checksum
        self.folder = backbone.folder
        self.tokenizer = backbone.tokenizer()
        self.max_tokens = min(options.max_tokens, backbone.max_tokens)
        self.model = tuned(backbone.model(), options.method, options.rank)
        self.scale = nn.Parameter(torch.zeros(()))  # of the scores, as an exponent
        self.projection = projection

    def vectors(self, texts: list[str]) -> Tensor:
        """``[U, E]``, of length 1."""
        tokens = self.tokenizer(
            encodable(texts), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        dtype = best_dtype() if self.options.dtype == "auto" else getattr(torch, self.options.dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            states_ULE = self.model(**tokens).last_hidden_state
        return F.normalize(pooled(states_ULE.float(), tokens["attention_mask"], self.options.pooling), dim=1)

    def forward(self, texts: list[str]) -> Tensor:
        """``[U, D]``."""
        rows_UD: Tensor = self.projection(self.vectors(texts))
        return rows_UD


def regressed(vectors_NE: Tensor, rows_ND: Tensor) -> nn.Linear:
    """The ridge regression of known rows on the vectors of their texts: what a projection begins with."""
    x_NE, y_ND = vectors_NE.double(), rows_ND.double()
    x_NE, y_ND = x_NE - x_NE.mean(0), y_ND - y_ND.mean(0)
    square_EE = x_NE.T @ x_NE
    square_EE.diagonal().add_(RIDGE * square_EE.diagonal().mean() + 1e-12)
    weight_ED = torch.linalg.solve(square_EE, x_NE.T @ y_ND).float()
    projection = nn.utils.skip_init(nn.Linear, *weight_ED.shape)
    with torch.no_grad():
        projection.weight.copy_(weight_ED.T)
        projection.bias.copy_(rows_ND.mean(0) - vectors_NE.mean(0) @ weight_ED)
    return cast(nn.Linear, projection)
