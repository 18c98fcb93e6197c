"""One publisher at a time: a lock of the kernel on one host, and a lease that other hosts can read.

The kernel's ``flock`` is given up when its holder dies, but on many network file systems it is not seen by other hosts.
So the lock file also says who holds it and until when; the holder renews that while it works. A publisher on another
host waits for the lease to run out; one on the same host trusts the kernel. The clocks of hosts that share a store have
to agree to within the lease.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bseq_plugin.errors import StoreError
from bseq_plugin.store.disk import failing

LEASE_SECONDS = 60.0
RECORD_BYTES = 512  # always as many, in place: rewriting it needs no space on a full disk
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # of a file system without them


@dataclass(frozen=True)
class Holder:
    """Who holds the lock, and until when (seconds since the epoch) unless it is renewed."""

    process: int
    host: str
    token: str
    until: float

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}"


class Lease:
    """The lock, as long as it is held."""

    def __init__(self, descriptor: int, path: Path, seconds: float) -> None:
        self._descriptor, self._path, self._seconds = descriptor, path, seconds
        self._me = Holder(os.getpid(), socket.gethostname(), secrets.token_hex(8), time.time() + seconds)
        self._stop, self._lock = threading.Event(), threading.Lock()
        _write(descriptor, self._me)
        self._thread = threading.Thread(target=self._renew, name="bseq-lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises StoreError if somebody took over because the lease ran out: then nothing may be done any more."""
        with self._lock:
            held = read_holder(self._descriptor)
        if held is None or held.token != self._me.token:
            raise StoreError(
                f"the lock of {str(self._path.parent)!r} was taken over by {held or 'nobody known'}: this publisher "
                "did not renew its lease in time (a frozen process, or a file system that hung); publish again"
            )

    def give_up(self) -> None:
        """Say that nobody holds it."""
        self._stop.set()
        self._thread.join()
        held = read_holder(self._descriptor)
        if held is not None and held.token == self._me.token:
            with contextlib.suppress(OSError):
                _write(self._descriptor, None)

    def _renew(self) -> None:
        while not self._stop.wait(self._seconds / 3):
            with self._lock, contextlib.suppress(OSError):  # it may work the next time; ``check`` has the last word
                held = read_holder(self._descriptor)
                if held is None or held.token != self._me.token:
                    return
                _write(self._descriptor, replace(self._me, until=time.time() + self._seconds))


@contextlib.contextmanager
def publish_lock(path: Path, lease_seconds: float = LEASE_SECONDS) -> Iterator[Lease]:
    """Hold ``path`` against other publishers: threads, processes and hosts. Raises StoreError if somebody holds it.

    The file stays: removing it would let two publishers lock two different files.
    """
    can_not_write = f"can't write to the store {str(path.parent)!r}"
    with failing(can_not_write, "; check its permissions"):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        by_kernel = _flocked(descriptor, path)
        held = read_holder(descriptor)
        # on this host the kernel would have refused if the holder still lived
        if held is not None and held.until > time.time() and not (by_kernel and held.host == socket.gethostname()):
            raise _taken(path, held, f"its lease runs out in {held.until - time.time():.0f} s")
        with failing(can_not_write, "; nothing was published"):
            lease = Lease(descriptor, path, lease_seconds)
        try:
            yield lease
        finally:
            lease.give_up()
            if by_kernel:  # closing is not enough if a child process inherited the file
                import fcntl

                fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


def read_holder(descriptor: int) -> Holder | None:
    """What the lock file says; None if nobody holds it, or it can't be read as a record."""
    try:
        holder = Holder(**json.loads(os.pread(descriptor, RECORD_BYTES, 0)))
        return replace(holder, until=float(holder.until))
    except (OSError, ValueError, TypeError):
        return None


def _write(descriptor: int, holder: Holder | None) -> None:
    text = json.dumps({} if holder is None else asdict(holder))
    os.pwrite(descriptor, text.encode().ljust(RECORD_BYTES)[:RECORD_BYTES], 0)
    os.fsync(descriptor)


def _flocked(descriptor: int, path: Path) -> bool:
    """Whether the kernel's lock is held now; False if this file system has none."""
    import fcntl  # not on Windows

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_LOCKS:
            return False
        raise _taken(path, read_holder(descriptor), "wait until it is done") from error
    return True


def _taken(path: Path, holder: Holder | None, advice: str) -> StoreError:
    return StoreError(f"another publisher ({holder or 'unknown'}) is at work in {str(path.parent)!r}; {advice}")
