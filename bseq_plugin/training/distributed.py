"""The process group: torchrun's, the caller's own, or one of a single process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import distributed as dist

from bseq_plugin.errors import BseqError, PluginError, RunError
from bseq_plugin.plugins import plugin_manager

Result = TypeVar("Result")


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

    def on_first(self, work: Callable[[], Result]) -> Result:
        """What ``work`` gives on rank 0, on every rank; what it raises there is raised on every rank.

        A rank that raised by itself would leave the others waiting for it.
        """
        found: list[Any] = [_outcome(work) if self.is_first else None]
        dist.broadcast_object_list(found, 0)
        result, error = found[0]
        if error is not None:
            raise error
        return cast(Result, result)

    def on_all(self, work: Callable[[], Result]) -> Result:
        """What ``work`` gives on this rank; if it raises on any rank, every rank raises that.

        ``work`` must not communicate: a rank that failed in it would be missed by the others.
        """
        result, error = _outcome(work)
        for rank, raised in enumerate(self.gather(error)):
            if raised is not None:
                raise type(raised)(f"{raised} (on rank {rank} of {self.size})") if self.size > 1 else raised
        return cast(Result, result)


def _outcome(work: Callable[[], Any]) -> tuple[Any, BseqError | None]:
    """(result, None) or (None, error); an error that is not ours is told in one line of ours, which can be sent."""
    try:
        return work(), None
    except BseqError as error:
        return None, error
    except Exception as error:
        first = next(iter(str(error).splitlines()), "")
        return None, RunError(f"{type(error).__name__}: {first}")


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
        with _peers_that_die(here):
            _same_plugins(here)
            yield here
    finally:
        if own:
            dist.destroy_process_group()


@contextmanager
def _peers_that_die(here: World) -> Iterator[None]:
    """A process that ends closes its connections: the others learn it at once, from an error that names no cause."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if here.size == 1 or not any(sign in text for sign in ("Connection", "gloo", "NCCL", "Timed out", "timeout")):
            raise
        raise RunError(
            f"rank {here.rank} of {here.size} lost another process of this run: it was killed, failed or does not "
            f"answer; look at its output, then go on with --resume ({text.splitlines()[0][:200]})"
        ) from error


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
