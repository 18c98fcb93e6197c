"""A directory of immutable, checksummed versions; one small file says which is current.

    store/CURRENT                        {"version", "manifest_sha256"}, replaced atomically, last
    store/versions/v00000042-<sha8>/     files, and MANIFEST.json with the size and sha256 of each, written last
    store/publish.lock                   held by the one publisher

A version is complete and durable before CURRENT names it, so a publisher can be killed at any instant. Readers verify
every byte before anything is parsed. Against an attacker who rewrites files *and* manifest *and* CURRENT checksums
can't help: keep the store where only the publisher writes, or give publisher and readers a key (``signing.py``).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from bseq_plugin.errors import StoreError, UsageError
from bseq_plugin.files import SCRATCH, Disk, put_in_place, write_bytes
from bseq_plugin.store.disk import build_time, failing, file_entry, object_bytes, parse_object, read_small, remove
from bseq_plugin.store.lock import publish_lock
from bseq_plugin.store.version import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    SCHEMA,
    SIGNATURE,
    VERSION_NAME,
    StoreVersion,
    checked_key,
    read_pointer,
    signature,
    verify_version,
    version_number,
)

CURRENT, VERSIONS, LOCK = "CURRENT", "versions", "publish.lock"
RESERVED = {"schema", "number", "parent", "created_at", "files"}
Loaded = TypeVar("Loaded")


class Store:
    """The versions under ``path``. Reading never writes, so a read-only store can be served.

    ``key``: a secret; with it every version is signed when it is published and refused if it is not signed with it.
    Default: what the file named by the environment variable BSEQ_STORE_KEY_FILE holds, if there is one.
    """

    def __init__(self, path: str | Path, *, disk: Disk | None = None, key: bytes | None = None) -> None:
        self.path = Path(path)
        self._versions = self.path / VERSIONS
        self._disk = disk or Disk()
        self._key = checked_key(key)

    def versions(self) -> list[str]:
        """Names of all versions, intact or not, oldest first."""
        with failing(f"can't read the store {str(self.path)!r}"), contextlib.suppress(FileNotFoundError):
            return sorted(filter(VERSION_NAME.fullmatch, os.listdir(self._versions)), key=version_number)
        return []

    def current(self) -> StoreVersion:
        """The version CURRENT names, verified. Raises StoreError if there is none or anything about it is wrong."""
        name, sha256 = self._read_current()
        try:
            return self.verify(name, sha256)
        except StoreError:
            newer, newer_sha256 = self._read_current()
            if newer == name:
                raise
            return self.verify(newer, newer_sha256)  # published, and the old one collected, since CURRENT was read

    def current_name(self) -> str:
        """The name in CURRENT, nothing else read. Raises StoreError if there is none or it is damaged."""
        return self._read_current()[0]

    def open(self) -> StoreVersion:
        """``current()``; if that is damaged, the newest intact version before it, with a warning.

        Raises StoreError if no version is intact.
        """
        return self.load(lambda version: version)

    def load(self, read: Callable[[StoreVersion], Loaded]) -> Loaded:
        """What ``read`` makes of the current version; if that is damaged, or ``read`` raises StoreError, of the newest
        version before it for which all is well, with a warning. Raises StoreError if there is none.
        """
        try:
            return read(self.current())
        except StoreError as error:
            cause = error
        for name in self._fallbacks():
            with contextlib.suppress(StoreError):
                loaded = read(self.verify(name))
                warnings.warn(f"{cause}. SERVING VERSION {name} INSTEAD; publish again", stacklevel=3)
                return loaded
        raise StoreError(f"{cause}; no other version in {str(self.path)!r} is intact") from cause

    def verify(self, name: str, manifest_sha256: str | None = None) -> StoreVersion:
        """Version ``name``, every byte checked (see ``verify_version``). Raises StoreError naming what is wrong."""
        if not VERSION_NAME.fullmatch(name):
            raise StoreError(f"{name!r} is no name of a version; there are: {', '.join(self.versions()) or '(none)'}")
        return verify_version(self._versions / name, manifest_sha256, self._key)

    def folder(self, name: str) -> Path:
        """Where the files of version ``name`` are, or would be."""
        return self._versions / name

    def publish(self, write: Callable[[Path], None], manifest: Mapping[str, Any]) -> str:
        """Make a new current version and return its name.

        Args:
            write: puts the files into an empty folder; plain files only.
            manifest: further fields of MANIFEST.json, plain JSON. Read after ``write`` returned, which may add to it.

        Raises:
            StoreError: another publisher is at work, or a write failed; the message says what readers see now.
            UsageError: ``manifest`` uses a reserved field or is not plain JSON.
        """
        with failing(f"can't make the store {str(self.path)!r}", "; choose another folder"):
            self.path.mkdir(parents=True, exist_ok=True)
            self._versions.mkdir(exist_ok=True)
            self._disk.fsync(self.path.parent)
        with publish_lock(self.path / LOCK) as lease:
            # what publishers that died left behind: whoever holds the lock is the only one alive
            for path in [*self._versions.glob(f"{SCRATCH}*"), *self.path.glob(f"{SCRATCH}*")]:
                remove(path)
            scratch = self._versions / f"{SCRATCH}{os.getpid()}-{secrets.token_hex(4)}"
            with self._undone_on_failure(scratch):
                scratch.mkdir()
                write(scratch)
                raw = self._seal(scratch, manifest)
            sha256 = hashlib.sha256(raw).hexdigest()
            folder = self._versions / f"v{parse_object(raw, MANIFEST)['number']:08d}-{sha256[:8]}"
            with self._undone_on_failure(scratch, folder):
                put_in_place(scratch, folder, self._disk)
                lease.check()
                self._point(folder.name, sha256)
            return folder.name

    def point_to(self, name: str) -> None:
        """Make an existing version current again (rollback). Raises StoreError if it is not intact."""
        with publish_lock(self.path / LOCK) as lease, self._undone_on_failure():
            self.verify(name)
            raw = read_small(self._versions / name / MANIFEST, MAX_MANIFEST_BYTES)
            lease.check()
            self._point(name, hashlib.sha256(raw).hexdigest())

    def rollback(self) -> str:
        """Make the newest intact version before the current one current again; returns its name.

        Raises StoreError if there is none; CURRENT stays as it is.
        """
        current = version_number(self.current_name())
        for name in reversed([name for name in self.versions() if version_number(name) < current]):
            with contextlib.suppress(StoreError):
                self.verify(name)
                break
        else:
            raise StoreError(f"store {str(self.path)!r} has no intact version before {self.current_name()}")
        self.point_to(name)
        return name

    def _read_current(self) -> tuple[str, str]:
        path = self.path / CURRENT
        if not os.path.lexists(path):
            raise StoreError(
                f"store {str(self.path)!r} has no {CURRENT}: nothing is published there yet (bseq publish)"
            )
        return read_pointer(path)

    def _fallbacks(self) -> list[str]:
        """Versions to try when the current one is damaged: those before it newest first, then those after it.

        A later version exists after a rollback, or if a publisher was killed just before its last step.
        """
        names = self.versions()[::-1]
        try:
            current = version_number(self._read_current()[0])
        except StoreError:
            return names
        return [n for n in names if version_number(n) < current] + [n for n in names if version_number(n) > current]

    def _seal(self, scratch: Path, manifest: Mapping[str, Any]) -> bytes:
        """Checksum the files, then write the manifest; its bytes."""
        if RESERVED & set(manifest) or any((scratch / name).exists() for name in (MANIFEST, SIGNATURE)):
            raise UsageError(f"the store writes {MANIFEST} and its fields {sorted(RESERVED)} itself; use other names")
        files = {path.name: file_entry(path) for path in sorted(scratch.iterdir())}
        numbers, parent = [version_number(name) for name in self.versions()], None
        with contextlib.suppress(StoreError):
            parent = self._read_current()[0]
            numbers.append(version_number(parent))
        head = {"schema": SCHEMA, "number": max(numbers, default=0) + 1, "parent": parent}
        raw = object_bytes({**head, "created_at": build_time().isoformat(), **manifest, "files": files})
        self._disk.write(scratch / MANIFEST, raw)
        if self._key is not None:
            self._disk.write(scratch / SIGNATURE, signature(self._key, raw))
        return raw

    def _point(self, name: str, manifest_sha256: str) -> None:
        pointer = object_bytes({"version": name, "manifest_sha256": manifest_sha256})
        write_bytes(self.path / CURRENT, pointer, self._disk)

    @contextlib.contextmanager
    def _undone_on_failure(self, *folders: Path) -> Iterator[None]:
        """Remove ``folders`` if the block fails, unless CURRENT names one already. OSErrors become StoreErrors."""
        try:
            yield
        except BaseException as error:
            visible = False
            with contextlib.suppress(StoreError):
                visible = self.current_name() in [folder.name for folder in folders]
            if not visible:
                for folder in folders:
                    remove(folder)
            if isinstance(error, OSError):
                now = "nothing was published"
                if visible:
                    now = "the new version is visible but may not survive a power failure"
                raise StoreError(f"publishing to {str(self.path)!r} failed: {error}; {now}") from error
            raise
