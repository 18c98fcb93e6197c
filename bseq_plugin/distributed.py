"""The process group: torchrun's, the caller's own, or one of a single process."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import distributed as dist
from torch._C._distributed_c10d import HashStore, PrefixStore, Store

from bseq_plugin.errors import BseqError, PluginError, RunError
from bseq_plugin.plugins import plugin_manager

Result = TypeVar("Result")


@dataclass(frozen=True)
class World:
    """This process among the others of a training."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Return whether this is rank 0, which alone writes logs and exports."""
        return self.rank == 0

    def sum(self, values: list[float]) -> list[float]:
        """Return the element-wise sum over ranks, in float64."""
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return [float(value) for value in total.tolist()]

    def gather(self, value: Result) -> list[Result]:
        """Return the values of all ranks, on every rank."""
        values: list[Result | None] = [None] * self.size
        dist.all_gather_object(values, value)
        return cast(list[Result], values)

    def gather_on_first(self, value: Result) -> list[Result]:
        """Return the values of all ranks on rank 0, which alone has to hold them; elsewhere []."""
        values: list[Result | None] | None = [None] * self.size if self.is_first else None
        dist.gather_object(value, values, 0)
        return cast(list[Result], values or [])

    def on_first(self, work: Callable[[], Result]) -> Result:
        """Return what ``work`` gives on rank 0, on every rank; what it raises there is raised on every rank.

        A rank that raised by itself would leave the others waiting for it.
        """
        outcome: list[Any] = [_outcome(work) if self.is_first else None]
        dist.broadcast_object_list(outcome, 0)
        result, error = outcome[0]
        if error is not None:
            raise error
        return cast(Result, result)

    def on_all(self, work: Callable[[], Result]) -> Result:
        """Return what ``work`` gives on this rank; if it raises on any rank, every rank raises that.

        ``work`` must not communicate: a rank that failed in it would be missed by the others.
        """
        result, error = _outcome(work)
        for rank, raised in enumerate(self.gather(error)):
            if raised is not None:
                raise type(raised)(f"{raised} (on rank {rank} of {self.size})") if self.size > 1 else raised
        return cast(Result, result)


def _outcome(work: Callable[[], Any]) -> tuple[Any, BseqError | None]:
    """Return (result, None) or (None, error); an error that is not ours is told in one of ours, which can be sent."""
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
        _join("nccl" if device.type == "cuda" else "gloo")
    try:
        here = World(dist.get_rank(), dist.get_world_size(), device)
        with _peers_that_die(here.rank, here.size):
            _same_plugins(here)
            yield here
    finally:
        if own:
            dist.destroy_process_group()


def _join(backend: str) -> None:
    if "WORLD_SIZE" not in os.environ:  # a store in memory: a single process opens no port
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
        return
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    with _peers_that_die(rank, size):
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            store, _, _ = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
            dist.init_process_group(backend, store=store_of_attempt(store, rank, size), rank=rank, world_size=size)
        else:
            dist.init_process_group(backend)


def store_of_attempt(store: Store, rank: int, size: int) -> Store:
    """Return a part of ``store`` that the processes of this start share with each other, and with nobody before them.

    torchrun keeps one store over ``--max-restarts``. The addresses of an earlier start are still in it, and a process
    that reads one of them waits for somebody who is dead. Starts can't be told apart by torchrun's own counter: every
    agent has its own. So rank 0 draws a name and gives it to whoever asks with a word that was never used before.
    """
    if rank != 0:
        word = uuid.uuid4().hex
        store.set(f"bseq/asks/{rank}", word)
        name = store.get(f"bseq/answer/{word}").decode()  # waits, as long as the store's timeout allows
        store.set(f"bseq/{name}/has/{rank}", "")
        return PrefixStore(name, store)
    name, missing = uuid.uuid4().hex, set(range(1, size))
    ends = time.monotonic() + store.timeout.total_seconds()  # type: ignore[attr-defined]
    while missing:
        for other in sorted(missing):
            if store.check([f"bseq/{name}/has/{other}"]):
                missing.remove(other)
            elif store.check([f"bseq/asks/{other}"]):  # maybe the question of somebody who is dead: it harms nobody
                store.set(f"bseq/answer/{store.get(f'bseq/asks/{other}').decode()}", name)
        if time.monotonic() > ends:
            raise RunError(f"ranks {sorted(missing)} of {size} have not come; look at the output of each")
        time.sleep(0.01)
    return PrefixStore(name, store)


@contextmanager
def _peers_that_die(rank: int, size: int) -> Iterator[None]:
    """A process that ends closes its connections: the others learn it at once, from an error that names no cause."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if size == 1 or not any(sign in text for sign in ("Connection", "gloo", "NCCL", "Timed out", "timeout")):
            raise
        raise RunError(
            f"rank {rank} of {size} lost another process of this run: it was killed, failed or does not "
            f"answer; look at its output, then go on with --resume ({text.splitlines()[0][:200]})"
        ) from error


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
    return device


def _same_plugins(here: World) -> None:
    """Require the same parts on every rank: a difference shows as a hang or as silently different gradients."""
    digests = here.gather(plugin_manager().digest())
    if len(set(digests)) > 1:
        raise PluginError(
            f"ranks have different plugins (digests by rank: {[d[:8] for d in digests]}); "
            "compare `bseq plugins` on each machine and install the same versions"
        )
