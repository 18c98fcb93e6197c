"""The process group: torchrun's, the caller's own, or one of a single process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed as dist

from bseq_plugin.errors import PluginError
from bseq_plugin.plugins import plugin_manager


@dataclass(frozen=True)
class World:
    """This process among the others."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """True on rank 0, which alone writes logs and exports."""
        return self.rank == 0

    def sum(self, values: list[float]) -> list[float]:
        """Element-wise sum over ranks, in float64."""
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return [float(value) for value in total.tolist()]

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, on every rank."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values


@contextmanager
def world() -> Iterator[World]:
    """Join the process group, making it first if nobody has; a group made here is closed at the end."""
    own = not dist.is_initialized()
    device = _device()
    if own:
        backend = "nccl" if device.type == "cuda" else "gloo"
        if "WORLD_SIZE" in os.environ:
            dist.init_process_group(backend)
        else:  # a store in memory: a single process opens no port
            memory = dist.HashStore()  # type: ignore[attr-defined]
            dist.init_process_group(backend, store=memory, rank=0, world_size=1)
    try:
        here = World(dist.get_rank(), dist.get_world_size(), device)
        _same_plugins(here)
        yield here
    finally:
        if own:
            dist.destroy_process_group()


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
    return device


def _same_plugins(here: World) -> None:
    """Every rank must run the same parts: a difference shows as a hang or as silently different gradients."""
    digests = here.gather(plugin_manager().digest())
    if len(set(digests)) > 1:
        raise PluginError(
            f"ranks have different plugins (digests by rank: {[d[:8] for d in digests]}); "
            "compare `bseq plugins` on each machine and install the same versions"
        )
