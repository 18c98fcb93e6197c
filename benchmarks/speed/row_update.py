"""Milliseconds to update looked-up rows on CPU: fbgemm's kernel for look-ups without pooling, and its pooled one.

    make bench-row_update ARGS="--rows 12101 --dim 64"

A look-up of every row once and of 760 of them again (a step of `reference` on such a catalogue), row-wise Adagrad.
Medians of 30 calls each, taken in turns. `bseq train` uses the pooled kernel (`bseq_plugin/training/row_update.py`).
Writes benchmarks/results/row_update.json.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    EmbeddingLocation,
    PoolingMode,
    SplitTableBatchedEmbeddingBagsCodegen,
)

from benchmarks import harness
from bseq_plugin.training.row_update import pooled_row_update

AGAIN, CALLS = 760, 30


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=12_101)
    parser.add_argument("--dim", type=int, default=64)
    chosen = parser.parse_args()
    table = SplitTableBatchedEmbeddingBagsCodegen(
        [(chosen.rows, chosen.dim, EmbeddingLocation.HOST, ComputeDevice.CPU)],
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        pooling_mode=PoolingMode.NONE,
    )
    generator = torch.Generator().manual_seed(0)
    indices = torch.cat([torch.arange(chosen.rows), torch.randint(chosen.rows, (AGAIN,), generator=generator)])
    offsets, grad = torch.tensor([0, len(indices)]), torch.randn(len(indices), chosen.dim, generator=generator)
    taken: dict[str, list[float]] = {"without pooling": [], "pooled": []}
    for _ in range(CALLS):
        for name, kernel in (("without pooling", contextlib.nullcontext()), ("pooled", pooled_row_update())):
            with kernel:
                # the first call after a kernel was exchanged is slow, and training exchanges it once
                for _ in range(2):
                    out = table(indices, offsets)
                    started = time.perf_counter()
                    out.backward(grad)
                    seconds = time.perf_counter() - started
                taken[name].append(1e3 * seconds)
    medians = {name: statistics.median(times) for name, times in taken.items()}
    for name, value in medians.items():
        print(f"{name:<16} {value:6.2f} ms")
    print(f"ratio            {medians['without pooling'] / medians['pooled']:6.1f}")
    harness.write("row_update", {"ms": medians})


if __name__ == "__main__":
    main()
