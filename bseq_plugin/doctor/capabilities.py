"""What a device can shard and optimise, asked of TorchRec and fbgemm themselves."""

from __future__ import annotations

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import ComputeDevice, SplitTableBatchedEmbeddingBagsCodegen
from torchrec.distributed.embedding import EmbeddingCollectionSharder

from bseq_plugin.training.plan import NOT_OFFERED
from bseq_plugin.training.sharding import TABLE_OPTIMIZERS


def shardings(device: str) -> tuple[list[str], dict[str, str]]:
    """(what a recipe may ask for, what TorchRec knows besides and why a recipe may not)."""
    sharder = EmbeddingCollectionSharder()
    known = sharder.sharding_types(device)
    offered = [kind for kind in known if kind not in NOT_OFFERED and "fused" in sharder.compute_kernels(kind, device)]
    return offered, {kind: NOT_OFFERED[kind] for kind in known if kind in NOT_OFFERED}


def table_optimizers(device: str) -> tuple[list[str], dict[str, str]]:
    """(those whose fused step really runs here, the others with what fbgemm says of them)."""
    works, fails = [], {}
    for name, kind in TABLE_OPTIMIZERS.items():
        try:
            _step(kind, device)
            works.append(name)
        except Exception as error:  # fbgemm asserts, and kernels raise what they like
            fails[name] = next(iter(str(error).splitlines()), type(error).__name__)
    return works, fails


def _step(kind: object, device: str) -> None:
    """One fused step on a table of four rows. Raises if the row that was looked up has not moved."""
    where = (EmbeddingLocation.HOST, ComputeDevice.CPU) if device == "cpu" else (
        EmbeddingLocation.DEVICE, ComputeDevice.CUDA
    )  # fmt: skip
    table = SplitTableBatchedEmbeddingBagsCodegen(
        [(4, 8, *where)], optimizer=kind, learning_rate=0.5, pooling_mode=PoolingMode.NONE
    )
    (weights,) = table.split_embedding_weights()
    weights.fill_(1.0)
    rows = torch.tensor([2], device=weights.device)
    table(rows, torch.tensor([0, 1], device=weights.device)).sum().backward()
    if not bool((weights[2] < 1.0).all()) or not bool((weights[0] == 1.0).all()):
        raise RuntimeError("its fused step does not change the row that was looked up, and that row alone")
