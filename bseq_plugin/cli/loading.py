"""How a command loads what it works with."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


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
