"""Files that are read with care and verified: what the store is made of."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from blake3 import blake3

from bseq_plugin.errors import StoreError, UsageError
from bseq_plugin.files import SCRATCH


def build_time() -> datetime:
    """The present, or what SOURCE_DATE_EPOCH says (seconds): then the same inputs give the same bytes."""
    fixed = os.environ.get("SOURCE_DATE_EPOCH")
    if not fixed:
        return datetime.now(UTC)
    try:
        return datetime.fromtimestamp(int(fixed), UTC)
    except (ValueError, OverflowError, OSError):
        raise UsageError(f"SOURCE_DATE_EPOCH = {fixed!r}; give whole seconds since 1970, or unset it") from None


@contextlib.contextmanager
def failing(what: str, advice: str = "") -> Iterator[None]:
    """Tell an OSError of the block as StoreError: ``what`` failed, the system's reason, advice."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{what}: {error.strerror}{advice}") from error


def read_small(path: Path, limit: int) -> bytes:
    """The bytes of a regular file of at most ``limit`` bytes. Raises StoreError."""
    with failing(f"can't read {str(path)!r}"):
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
            raise StoreError(f"{str(path)!r} is not a plain file of at most {limit} bytes")
        return path.read_bytes()


def parse_object(raw: bytes, where: str) -> dict[str, Any]:
    """A JSON object. Raises StoreError."""
    try:
        values = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{where} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise StoreError(f"{where} holds a {type(values).__name__}, not an object")
    return values


def object_bytes(values: Mapping[str, Any]) -> bytes:
    """JSON with sorted keys. Raises UsageError for what JSON can't hold (NaN, bytes, ...)."""
    try:
        return json.dumps(values, sort_keys=True, allow_nan=False, indent=1).encode()
    except (TypeError, ValueError) as error:
        raise UsageError(f"manifest fields must be plain JSON: {error}") from error


def remove(path: Path) -> None:
    """Remove a file or folder as far as possible; never raises OSError."""
    if path.is_dir() and not path.is_symlink():
        # under a name that is no version first, so that a half-removed one is never looked at
        grave = path.with_name(f"{SCRATCH}dead-{secrets.token_hex(4)}")
        with contextlib.suppress(OSError):
            os.replace(path, grave)
        shutil.rmtree(grave if grave.exists() else path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def file_entry(path: Path) -> dict[str, Any]:
    """``{"bytes", "sha256", "blake3"}`` of a regular file. Raises StoreError for a folder, a link or a hidden file."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode) or path.name.startswith("."):
        raise StoreError(f"{path.name!r} can't be published: a version holds plain files only, no folders or links")
    return {"bytes": status.st_size, "sha256": sha256(path), "blake3": _blake3(path)}


def verify_file(folder: Path, name: object, entry: object) -> None:
    """Raises StoreError unless ``name`` is a plain file in ``folder`` itself, with the size and digest of ``entry``.

    BLAKE3 is the one that is compared: it keeps up with the device where SHA-256 is slower than reading. SHA-256 is
    there for other tools.
    """
    # a manifest is only as good as who wrote it: no name may lead out of the folder
    if not isinstance(name, str) or name in ("", ".", "..") or "\0" in name or "/" in name or "\\" in name:
        raise StoreError(f"{folder.name}: the manifest names {name!r}, which is not a plain file name")
    if not isinstance(entry, dict) or set(entry) != {"bytes", "sha256", "blake3"}:
        raise StoreError(f"{folder.name}/{name}: the manifest has no size, sha256 and blake3")
    with failing(f"can't read {folder.name}/{name}"):
        status = (folder / name).lstat()
        if not stat.S_ISREG(status.st_mode):
            raise StoreError(f"{folder.name}/{name} is not a plain file (a link or a folder)")
        if status.st_size != entry["bytes"]:
            raise StoreError(f"{folder.name}/{name} has {status.st_size} bytes, published were {entry['bytes']}")
        if _blake3(folder / name) != entry["blake3"]:
            raise StoreError(f"{folder.name}/{name} is damaged: its blake3 is not the published one")


def sha256(path: Path) -> str:
    """Of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _blake3(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, blake3).hexdigest()  # type: ignore[arg-type]  # its stub has no block_size
