"""Removing old versions, and never one that somebody reads.

A reader holds a shared lock on the manifest of the version it serves, which needs no write permission and is dropped by
the kernel when the process dies. The collector takes the lock exclusively before it removes a version. File systems
without such locks between hosts are what the grace period is for.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bseq_plugin.errors import UsageError
from bseq_plugin.store.disk import remove
from bseq_plugin.store.lock import publish_lock
from bseq_plugin.store.store import LOCK, Store
from bseq_plugin.store.version import MANIFEST

KEEP, GRACE_SECONDS = 3, 600.0


@dataclass(frozen=True)
class Collected:
    """What ``collect_garbage`` did: names of versions, oldest first; ``kept`` with the reason."""

    removed: tuple[str, ...]
    kept: dict[str, str]


def collect_garbage(store: Store, keep: int = KEEP, grace_seconds: float = GRACE_SECONDS) -> Collected:
    """Remove all versions but the newest ``keep``, the current one, those in use and those younger than the grace.

    Raises:
        UsageError: ``keep`` below 1, a negative grace.
        StoreError: a publisher is at work, or the store has no readable CURRENT: then nothing is removed.
    """
    if isinstance(keep, bool) or not isinstance(keep, int) or keep < 1:
        raise UsageError(f"keep = {keep!r}; give a whole number of 1 or more")
    if not grace_seconds >= 0:
        raise UsageError(f"grace_seconds = {grace_seconds!r}; give 0 or more")
    store.current_name()  # an empty or damaged store is an error before a lock file is made
    removed: list[str] = []
    kept: dict[str, str] = {}
    with publish_lock(store.path / LOCK):
        names = store.versions()
        current = store.current_name()
        for place, name in enumerate(names):
            why = _reason(store.folder(name), name == current, len(names) - place <= keep, grace_seconds)
            if why is None and _removed(store.folder(name)):
                removed.append(name)
            else:
                kept[name] = why or "in use"
    return Collected(tuple(removed), kept)


def in_use(folder: Path) -> bool:
    """Whether a process holds the version of this folder open."""
    with _exclusive(folder) as free:
        return not free


def _reason(folder: Path, is_current: bool, is_new: bool, grace_seconds: float) -> str | None:
    if is_current:
        return "current"
    if is_new:
        return "among the newest"
    with contextlib.suppress(OSError):
        if time.time() - folder.stat().st_mtime < grace_seconds:
            return "younger than the grace period"
    return None


def _removed(folder: Path) -> bool:
    with _exclusive(folder) as free:
        if free:
            remove(folder)
        return free and not folder.exists()


@contextlib.contextmanager
def _exclusive(folder: Path) -> Iterator[bool]:
    """True while nobody reads the version; the lock is held meanwhile. A version without manifest has no reader."""
    import fcntl  # not on Windows

    try:
        descriptor = os.open(folder / MANIFEST, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        yield True
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        yield False
    else:
        yield True
    finally:
        os.close(descriptor)
