"""A faster row-wise Adagrad update of sequence look-ups on CPU, by fbgemm's own kernel for pooled look-ups.

fbgemm's CPU kernel for look-ups without pooling sums the gradients of a row in nested hash maps, in one thread, and
spends its time allocating. A look-up without pooling is a pooled one whose bags hold one row each, and the pooled
kernel sorts, vectorises and runs on all threads (``make bench-row_update`` measures both). Both are exact: the
gradients of a row are summed before it is updated.

The kernel is replaced for the whole process, so that only ``train`` does it, for as long as it runs, and only if its
caller wants it (``fast_row_update``): an encoder inside somebody's model never touches fbgemm.

Shape letters: N looked-up rows, D width, F features (keys) of the look-up.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

SEQUENCE_UPDATE = "split_embedding_nobag_backward_codegen_rowwise_adagrad_cpu"
POOLED_UPDATE = "split_embedding_backward_codegen_rowwise_adagrad_cpu"
# What both were written against; with an fbgemm whose kernels look otherwise nothing is replaced.
ARGUMENTS = {
    SEQUENCE_UPDATE: "grad_output host_weights weights_placements weights_offsets D hash_size_cumsum "
    "total_hash_size_bits indices offsets stochastic_rounding momentum1_host momentum1_placements momentum1_offsets "
    "learning_rate_tensor eps weight_decay weight_decay_mode max_norm",
    POOLED_UPDATE: "grad_output host_weights weights_placements weights_offsets D_offsets max_D hash_size_cumsum "
    "total_hash_size_bits indices offsets pooling_mode indice_weights stochastic_rounding momentum1_host "
    "momentum1_placements momentum1_offsets learning_rate_tensor eps weight_decay weight_decay_mode max_norm "
    "output_dtype",
}
SUM, FLOAT32 = 0, 0  # fbgemm's numbers for a pooling mode and an output type


@contextmanager
def pooled_row_update() -> Iterator[bool]:
    """While open, sequence look-ups on CPU are updated by the pooled kernel; True if this fbgemm has both kernels.

    The kernel that was there before is back afterwards, whatever happened within.
    Weight decay and norm limits, which the pooled kernel does not know, still go to the kernel they were meant for.
    """
    if not _is_known_fbgemm():
        yield False
        return
    original = torch.library.get_kernel(f"fbgemm::{SEQUENCE_UPDATE}", "CPU")

    def update(*arguments: Any, **named: Any) -> None:
        values = dict(zip(ARGUMENTS[SEQUENCE_UPDATE].split(), arguments, strict=False)) | named
        if values.get("weight_decay") or values.get("max_norm"):
            keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
            original.call_boxed(keys, *arguments, **named)
        else:
            _update(**values)

    library = torch.library.Library("fbgemm", "IMPL")  # type: ignore[no-untyped-call]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch tells that a kernel is replaced, which is the point
            library.impl(SEQUENCE_UPDATE, update, "CPU")  # type: ignore[no-untyped-call]
        yield True
    finally:
        library._destroy()  # type: ignore[no-untyped-call]


def _is_known_fbgemm() -> bool:
    import fbgemm_gpu  # noqa: F401, its operators come with it

    for name, arguments in ARGUMENTS.items():
        operator = getattr(torch.ops.fbgemm, name, None)
        if operator is None or [a.name for a in operator.default._schema.arguments] != arguments.split():
            return False
    return True


def _update(
    grad_output: Tensor,
    weights_placements: Tensor,
    weights_offsets: Tensor,
    hash_size_cumsum: Tensor,
    indices: Tensor,
    offsets: Tensor,
    momentum1_placements: Tensor,
    momentum1_offsets: Tensor,
    D: int,
    **others: Any,
) -> None:
    """Make one pooled update a table: features of one table are one, for a row may be in several of them."""
    tables: dict[int, list[int]] = {}
    for feature, begin in enumerate(weights_offsets.tolist()):
        tables.setdefault(begin, []).append(feature)
    feature_ends = offsets[:: (len(offsets) - 1) // len(weights_offsets)].tolist() if len(tables) > 1 else []
    for features in tables.values():
        first = slice(features[0], features[0] + 1)
        rows_N, grad_ND, later = indices, grad_output, hash_size_cumsum[-1:]
        if len(tables) > 1:
            parts = [slice(feature_ends[f], feature_ends[f + 1]) for f in features]
            rows_N = torch.cat([indices[part] for part in parts])
            grad_ND = torch.cat([grad_output[part] for part in parts])
            later = hash_size_cumsum[hash_size_cumsum > hash_size_cumsum[first]]
        _pooled(
            grad_output=grad_ND.contiguous(),
            weights_placements=weights_placements[first],
            weights_offsets=weights_offsets[first],
            D_offsets=torch.tensor([0, D], dtype=torch.int32),
            max_D=D,
            hash_size_cumsum=torch.cat([hash_size_cumsum[first], later[:1]]),
            indices=rows_N,
            offsets=torch.arange(len(rows_N) + 1, dtype=offsets.dtype),
            pooling_mode=SUM,
            indice_weights=grad_output.new_empty(0),
            momentum1_placements=momentum1_placements[first],
            momentum1_offsets=momentum1_offsets[first],
            output_dtype=FLOAT32,
            **others,
        )


def _pooled(**arguments: Any) -> None:
    getattr(torch.ops.fbgemm, POOLED_UPDATE)(**arguments)
