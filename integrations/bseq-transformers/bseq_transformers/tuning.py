"""Which part of a pretrained Transformer learns: nothing, the last layer, low-rank additions, or all of it.

LoRA: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast

from torch import nn

import bseq_plugin as bseq

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Method = Literal["frozen", "last_layer", "lora", "full"]
METHODS = ("frozen", "last_layer", "lora", "full")


def tuned(model: PreTrainedModel, method: str, rank: int = 8) -> nn.Module:
    """``model`` with those parameters requiring gradients that ``method`` trains; for LoRA wrapped by ``peft``.

    Args:
        rank: of the additions to the attention's query and value projections, for "lora".

    Raises:
        UsageError: unknown method, or an architecture whose layers are not found.
        MissingDependencyError: "lora" without ``peft``.
    """
    if method not in METHODS:
        raise bseq.UsageError(f"method = {method!r}; choose one of {', '.join(METHODS)}")
    if method == "lora":
        return _with_lora(model, rank)
    model.requires_grad_(method == "full")
    if method == "last_layer":
        _last_layer(model).requires_grad_(True)
    return model


def trained_share(model: nn.Module) -> tuple[int, int]:
    """(parameters that learn, all parameters)."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, learns in sizes if learns), sum(size for size, _ in sizes)


def _with_lora(model: PreTrainedModel, rank: int) -> nn.Module:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise bseq.MissingDependencyError("method = 'lora' needs peft: pip install peft") from error
    config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.05, target_modules=_attention(model), bias="none")
    return cast(nn.Module, get_peft_model(model, config))


def _attention(model: PreTrainedModel) -> list[str]:
    """Names of the query and value projections."""
    found = {name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    for names in (["query", "value"], ["q_lin", "v_lin"], ["q_proj", "v_proj"], ["q", "v"]):
        if set(names) <= found:
            return names
    raise bseq.UsageError(f"no query and value projections among the linear layers {sorted(found)}; use another method")


def _last_layer(model: PreTrainedModel) -> nn.Module:
    for part in model.modules():
        if isinstance(part, nn.ModuleList) and len(part):
            return part[-1]
    raise bseq.UsageError(f"{type(model).__name__} has no list of layers; use another method")
