"""Whether TorchRec shards an encoder's tables, and so that they learn what they would learn on one process."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torchrec import EmbeddingCollection
from torchrec.distributed.embedding import ShardedEmbeddingCollection
from torchrec.distributed.model_parallel import get_unwrapped_module
from torchrec.distributed.types import ParameterSharding

from bseq_plugin.errors import UsageError
from bseq_plugin.schema.encoders import HistoryEncoder

UNSHARDED = (
    "in no sharding plan: every process holds all of it, and an optimizer in backward is lost (a dense one trains it, "
    "if it has its parameters); add EmbeddingCollectionSharder() to the sharders of DistributedModelParallel and of "
    "the planner"
)
POOLED = (
    "planned as {kind}, and fbgemm's look-up for copied tables pools a history instead of giving one row an event on "
    "CPU; constrain it, ParameterConstraints(sharding_types=['row_wise']), or ['table_wise'] for a small table"
)
IN_PIECES = (
    "planned as column_wise in {n} pieces under the optimizer {optimizer}: it keeps one number a row, and a row in "
    "pieces has one for each, so that it learns something else than in one piece; use exact_adagrad, or "
    "ParameterConstraints(sharding_types=['row_wise'])"
)
AT_REST = (
    "under a fused optimizer with learning rate 0, so that it never learns unless a schedule sets another; give "
    "EmbeddingCollectionSharder(fused_params={'learning_rate': ...}), or apply_optimizer_in_backward, one"
)


def check_sharded(model: nn.Module, *, raises: bool = True) -> list[str]:
    """Return what is wrong with the sharding of the tables of each encoder in ``model``, with remedies; [] if nothing.

    Read off plan and settings, which every process has, so the same on all. What it can't see: docs/embedding.md.

    Args:
        model: what ``DistributedModelParallel`` has made of a host with encoders inside.
        raises: raise what is found instead of returning it.

    Raises:
        UsageError: there is no encoder in the model; or what is found, all of it.
    """
    modules = get_unwrapped_module(model).named_modules()
    encoders = {name: module for name, module in modules if isinstance(module, HistoryEncoder) and _tables(module)}
    if not encoders:
        raise UsageError("the model has no encoder with tables inside; give what DistributedModelParallel has made")
    findings = [f"{name or 'encoder'}: {finding}" for name, module in encoders.items() for finding in _findings(module)]
    if findings and raises:
        raise UsageError("\n".join(findings))
    return findings


def has_warned(encoder: HistoryEncoder) -> bool:
    """Return whether this is a training forward, after which it need not be asked again: in it an encoder that
    ``DistributedModelParallel`` has wrapped warns (UserWarning) of what ``check_sharded`` finds.
    """
    if not (encoder.training and torch.is_grad_enabled()):
        return False
    looked_at = isinstance(_tables(encoder), ShardedEmbeddingCollection) or _in_parallel_model()
    if looked_at and (findings := "; ".join(_findings(encoder))):
        warnings.warn(f"{type(encoder).__name__}: {findings} (bseq.check_sharded raises this)", stacklevel=3)
    return True


def _in_parallel_model() -> bool:
    """Return whether DistributedModelParallel, and not the host, has put DDP around this forward: it alone says which
    parameters are sharded, and left out, even where there are none.
    """
    around = DistributedDataParallel._get_active_ddp_module()  # type: ignore[no-untyped-call]
    return around is not None and hasattr(around.module, "_ddp_params_and_buffers_to_ignore")


def _tables(encoder: nn.Module) -> Any:
    tables = getattr(encoder, "embedding_collection", None)
    return tables if isinstance(tables, EmbeddingCollection | ShardedEmbeddingCollection) else None


def _findings(encoder: HistoryEncoder) -> list[str]:
    tables, found = _tables(encoder), dict[str, list[str]]()
    if isinstance(tables, EmbeddingCollection):
        found[UNSHARDED] = [table.name for table in tables.embedding_configs()]
    else:
        fused = _fused_settings(tables)
        for name, planned in tables.module_sharding_plan.items():
            for cause in _causes(planned, fused.get(name, {}), tables._device):
                found.setdefault(cause, []).append(name)
    return [f"table {', '.join(map(repr, names))} is {cause}" for cause, names in found.items()]


def _causes(planned: ParameterSharding, fused: dict[str, Any], device: torch.device) -> Iterator[str]:
    if planned.compute_kernel == "dense":  # no fused optimizer
        yield from [POOLED.format(kind=planned.sharding_type)] if device.type == "cpu" else []
        return
    n_pieces, optimizer = len(planned.sharding_spec.shards), str(fused.get("optimizer"))
    if planned.sharding_type == "column_wise" and n_pieces > 1 and "row_wise" in optimizer:
        yield IN_PIECES.format(n=n_pieces, optimizer=optimizer)
    if fused.get("learning_rate") == 0:
        yield AT_REST


def _fused_settings(tables: Any) -> dict[str, dict[str, Any]]:
    """Return table -> what its fused optimizer was made with, on all ranks; TorchRec has no public name for it."""
    shardings = tables._sharding_type_to_sharding.values()
    ranks = [rank for sharding in shardings for rank in sharding._grouped_embedding_configs_per_rank]
    groups = [group for rank in ranks for group in rank]
    return {table.name: group.fused_params or {} for group in groups for table in group.embedding_tables}
