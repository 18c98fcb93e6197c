"""How a process of ours gets its memory, and how it loads the libraries that it works with."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
KEPT_BYTES = 512 << 20  # free memory at the top of the heap that is not given back
LARGEST_KEPT = 32 << 20  # the largest that glibc allows; larger blocks are mapped, and given back when they are freed


def keep_freed_memory() -> bool:
    """Let glibc's malloc keep what is freed instead of giving it back to the system; False if nothing was done.

    A training step frees and asks for the same some hundred blocks again. Given back, each comes as fresh pages, which
    the kernel fills with zeros one by one. Nothing is done without glibc, with a preloaded library (which may be
    another allocator), or if the environment configures the allocator already. For processes of our own: in a user's
    it is the user's choice.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")) for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)) and bool(mallopt(M_TRIM_THRESHOLD, KEPT_BYTES))


@contextmanager
def loading() -> Iterator[None]:
    """Import large libraries inside: Python's collector of cyclic garbage rests meanwhile.

    Imports make some million objects that stay for good; looking through them again and again takes a quarter of the
    start. Afterwards they, and whatever garbage there is by then, are left out of every later collection
    (``gc.freeze``): for processes of our own.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collecting:
            gc.enable()
