"""What a sharded model holds in pieces, put together on rank 0."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed.tensor import DTensor
from torchrec.distributed.shards_wrapper import LocalShardsWrapper

from bseq_plugin.distributed import World


def whole(value: Tensor | ShardedTensor, here: World) -> Tensor:
    """Return all of a parameter on the CPU of rank 0; elsewhere something empty."""
    if isinstance(value, DTensor):
        local = value.to_local()
        if isinstance(local, LocalShardsWrapper):
            return _of_pieces(local, value.shape, here)
        return value.full_tensor().cpu()
    if not isinstance(value, ShardedTensor):
        return value.detach().cpu().clone()
    whole = torch.empty(value.metadata().size, dtype=value.dtype, device=here.device) if here.is_first else None
    value.gather(0, whole)
    return torch.empty(0) if whole is None else whole.cpu()


def _of_pieces(local: LocalShardsWrapper, shape: torch.Size, here: World) -> Tensor:
    """Return on rank 0 what TorchRec gives as a DTensor of pieces of any size, which that can't put together itself."""
    own = [piece.detach().cpu().clone() for piece in local.local_shards()]
    starts = [tuple(offsets) for offsets in local.local_offsets()][: len(own)]  # one of nothing, without a piece
    pieces = list(chain.from_iterable(here.gather_on_first(list(zip(starts, own, strict=True)))))
    if not here.is_first:
        return torch.empty(0)
    table = torch.empty(shape, dtype=pieces[0][1].dtype)
    for offsets, piece in pieces:  # copies, where there are any, are the same
        table[tuple(slice(start, start + n) for start, n in zip(offsets, piece.shape, strict=True))] = piece
    return table
