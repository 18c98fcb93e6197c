"""Why the whole-catalogue loss works candidate by candidate in small chunks: its products in both layouts.

    make bench-head ARGS="--items 12101 --dim 64"

Milliseconds for 732 states (a step of 128 short histories) of the logits, both gradients and the exponentials, with
logits as [candidates, states] and as [states, candidates], for several chunks. Best of 20 in one call. Writes
benchmarks/results/head.json.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from benchmarks import harness

STATES = 732


def best(step: Callable[[], object]) -> float:
    """Return the seconds of the fastest of 20 calls."""
    taken = []
    for _ in range(20):
        started = time.perf_counter()
        step()
        taken.append(time.perf_counter() - started)
    return min(taken)


def milliseconds(n_items: int, dim: int, chunk: int, items_first: bool) -> dict[str, float]:
    """Return the milliseconds of each part of the loss, for all states."""
    generator = torch.Generator().manual_seed(0)
    items_VD, states_CD = torch.randn(n_items, dim, generator=generator), torch.randn(chunk, dim, generator=generator)
    d_items_VD = torch.zeros_like(items_VD)
    shape = (n_items, chunk) if items_first else (chunk, n_items)
    logits, source = torch.empty(shape), torch.randn(shape, generator=generator)
    if items_first:
        steps: dict[str, Callable[[], object]] = {
            "logits": lambda: torch.mm(items_VD, states_CD.T, out=logits),
            "d_items": lambda: d_items_VD.addmm_(source, states_CD),
            "d_states": lambda: torch.mm(source.T, items_VD),
        }
    else:
        steps = {
            "logits": lambda: torch.mm(states_CD, items_VD.T, out=logits),
            "d_items": lambda: d_items_VD.addmm_(source.T, states_CD),
            "d_states": lambda: torch.mm(source, items_VD),
        }
    steps["exp"] = lambda: torch.exp(source, out=logits)
    return {name: 1e3 * best(step) * STATES / chunk for name, step in steps.items()}


def main() -> None:
    """Measure, print a row for each layout and chunk, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=12_101)
    parser.add_argument("--dim", type=int, default=64)
    chosen = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {chosen.items:,} items, dim {chosen.dim}")
    milliseconds_of = {}
    for items_first in (True, False):
        for chunk in (32, 64, 128, 256):
            taken = milliseconds(chosen.items, chosen.dim, chunk, items_first)
            layout = "[items, states]" if items_first else "[states, items]"
            parts = "  ".join(f"{name} {value:6.2f}" for name, value in taken.items())
            print(f"{layout} chunk {chunk:>4}  {parts}  total {sum(taken.values()):6.2f} ms")
            milliseconds_of[f"{layout}, chunk {chunk}"] = taken
    harness.write("head", {"ms": milliseconds_of})


if __name__ == "__main__":
    main()
