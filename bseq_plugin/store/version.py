"""One version of a store on disk, and how it is verified."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import weakref
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bseq_plugin.errors import StoreError, UsageError
from bseq_plugin.store.disk import failing, parse_object, read_small, verify_file

SCHEMA = 1
MANIFEST = "MANIFEST.json"
INDEX_FILE = "items.faiss"  # what an index backend saved, if it needs a file
VERSION_NAME = re.compile(r"v(\d{8,18})-([0-9a-f]{8})", re.ASCII)
MAX_MANIFEST_BYTES = 64 * 2**20
MAX_CURRENT_BYTES = 4096
HASH_THREADS = min(4, os.cpu_count() or 1)
SHA256 = re.compile(r"[0-9a-f]{64}")


class SharedLock:
    """A shared lock on a manifest, held until this object is gone; opening a file to read is all it needs."""

    def __init__(self, path: Path) -> None:
        """Raises StoreError if the file can't be opened or is being removed."""
        import fcntl  # not on Windows

        with failing(f"can't read {str(path)!r}"):  # neither a link nor a pipe is followed or waited for
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        self._finalizer = weakref.finalize(self, os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreError(f"{str(path.parent)!r} is being removed by the garbage collector") from error
        except OSError:  # a file system without locks: the grace period has to do
            pass
        if not os.path.lexists(path):
            raise StoreError(f"{str(path.parent)!r} was removed by the garbage collector")


@dataclass(frozen=True)
class StoreVersion:
    """One verified version: every file listed in ``manifest["files"]`` had its size and sha256 when it was opened."""

    name: str
    folder: Path
    manifest: Mapping[str, Any]
    lease: SharedLock | None = field(default=None, compare=False, repr=False)  # keeps the collector away

    def has(self, name: str) -> bool:
        """Whether the version has a file ``name``."""
        return name in self.manifest["files"]

    def file(self, name: str) -> Path:
        """The path of a verified file. Raises StoreError if the version has none of that name."""
        if not self.has(name):
            raise StoreError(
                f"version {self.name} has no file {name!r}; it has: {', '.join(sorted(self.manifest['files']))}"
            )
        return self.folder / name


def version_number(name: str) -> int:
    """42 of "v00000042-1f2e3d4c"."""
    return int(name[1:].partition("-")[0])


def read_pointer(path: Path) -> tuple[str, str]:
    """``(version, manifest_sha256)`` of a CURRENT file. Raises StoreError if it makes no sense."""
    values = parse_object(read_small(path, MAX_CURRENT_BYTES), str(path))
    name, sha256 = values.get("version"), values.get("manifest_sha256")
    if not isinstance(name, str) or not isinstance(sha256, str):
        raise StoreError(f"{str(path)!r} is damaged: it lacks 'version' or 'manifest_sha256'")
    match = VERSION_NAME.fullmatch(name)
    if match is None or not SHA256.fullmatch(sha256) or match[2] != sha256[:8]:
        raise StoreError(f"{str(path)!r} is damaged: it names version {name!r}")
    return name, sha256


def _largest_first(item: tuple[str, Any]) -> int:
    entry = item[1]
    size = entry.get("bytes") if isinstance(entry, dict) else None
    return -size if isinstance(size, int) else 0


def verify_version(folder: Path, manifest_sha256: str | None = None, key: bytes | None = None) -> StoreVersion:
    """Check the manifest, then the size and sha256 of every file, before anything is parsed.

    Args:
        manifest_sha256: what CURRENT says; None: only the first digits are compared, with the folder's name.
        key: with it, the manifest must be signed with it.

    Raises:
        StoreError: naming what is wrong.
    """
    name, match = folder.name, VERSION_NAME.fullmatch(folder.name)
    if match is None or os.path.islink(folder) or not os.path.isdir(folder):
        raise StoreError(f"there is no version {str(folder)!r}")
    lease = SharedLock(folder / MANIFEST)  # before anything is read: what is checked must not go away afterwards
    raw = read_small(folder / MANIFEST, MAX_MANIFEST_BYTES)
    digest = hashlib.sha256(raw).hexdigest()
    if not digest.startswith(match[2]) or manifest_sha256 not in (None, digest):
        raise StoreError(f"version {name}: {MANIFEST} is damaged, its sha256 is not the published one")
    if key is not None:
        check_signature(folder, key, raw)
    manifest = parse_object(raw, f"{name}/{MANIFEST}")
    if manifest.get("schema") != SCHEMA:
        raise StoreError(
            f"version {name} has schema {manifest.get('schema')!r}, this bseq reads {SCHEMA}: publish again"
        )
    files = manifest.get("files")
    if manifest.get("number") != version_number(name) or not isinstance(files, dict):
        raise StoreError(f"version {name}: {MANIFEST} is of version number {manifest.get('number')!r}")
    # hashing lets other threads run, and several reads at once keep the device busy
    with ThreadPoolExecutor(max_workers=min(HASH_THREADS, len(files) or 1)) as pool:
        for done in [pool.submit(verify_file, folder, *item) for item in sorted(files.items(), key=_largest_first)]:
            done.result()
    return StoreVersion(name, folder, manifest, lease)


SIGNATURE = "MANIFEST.hmac"
KEY_ENV = "BSEQ_STORE_KEY_FILE"
MIN_KEY_BYTES = 16


def signature(key: bytes, manifest: bytes) -> bytes:
    """HMAC-SHA256 of the manifest's bytes, as hexadecimal digits."""
    return hmac.new(key, manifest, hashlib.sha256).hexdigest().encode()


def check_signature(folder: Path, key: bytes, manifest: bytes) -> None:
    """Raises StoreError unless the version in ``folder`` is signed with this key."""
    if not os.path.lexists(folder / SIGNATURE):
        raise StoreError(f"version {folder.name} is not signed, and this reader has a key: publish again with the key")
    if not hmac.compare_digest(read_small(folder / SIGNATURE, 256), signature(key, manifest)):
        raise StoreError(f"version {folder.name} is not signed with this reader's key: it was changed, or the key was")


def checked_key(key: bytes | None) -> bytes | None:
    """``key``, or what the file named by BSEQ_STORE_KEY_FILE holds; None if there is neither.

    Raises UsageError for a key that is too short to be one, or a file that can't be read.
    """
    if key is None:
        named = os.environ.get(KEY_ENV)
        if not named:
            return None
        try:
            key = Path(named).read_bytes().strip()
        except OSError as error:
            raise UsageError(f"{KEY_ENV} = {named!r} can't be read: {error.strerror}") from error
    if not isinstance(key, bytes) or len(key) < MIN_KEY_BYTES:
        raise UsageError(f"the store key has to be bytes, at least {MIN_KEY_BYTES}: head -c 32 /dev/urandom > key")
    return key
