"""What is written is there whole, after a power failure too, or what was there before is.

Everything that bseq leaves on a disk is written beside its place, flushed to the device, renamed, and the folder that
holds the name is flushed as well. There is one durability, and this is where it is written down.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from bseq_plugin.errors import BseqError, UsageError

SCRATCH = ".tmp-"  # begins the name of whatever is not finished yet, or no longer wanted


def fsync(path: Path) -> None:
    """Force a file, or a folder's entries, to the device."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Disk:
    """The operations that can fail for want of space, permission or luck; tests replace them one by one."""

    def write(self, path: Path, data: bytes) -> None:
        """Create ``path`` with ``data``."""
        path.write_bytes(data)

    def fsync(self, path: Path) -> None:
        """Force a file, or a folder's entries, to the device."""
        fsync(path)

    def replace(self, source: Path, target: Path) -> None:
        """Rename atomically."""
        os.replace(source, target)


DISK = Disk()


def aside_of(path: Path) -> Path:
    """Where this process writes what will be ``path``: a name in the same folder, hidden."""
    return path.with_name(f"{SCRATCH}{path.name}-{os.getpid()}")


def put_in_place(aside: Path, path: Path, disk: Disk = DISK) -> None:
    """Give a file or folder that was written beside its place the name ``path``, all of it on the device.

    A file that is there is replaced atomically; a folder is removed first, so that there is a moment without one.
    Raises OSError; then ``path`` is what it was, unless the folder that holds it is all that could not be flushed.
    """
    for part in [*sorted(aside.rglob("*")), aside] if aside.is_dir() else [aside]:
        disk.fsync(part)
    if aside.is_dir() and path.is_dir():
        shutil.rmtree(path)
    disk.replace(aside, path)
    disk.fsync(path.parent)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which becomes ``path`` when the block ends well; until then ``path`` is what it was.

    Raises OSError if writing fails.
    """
    aside = aside_of(path)
    try:
        with aside.open("wb") as file:
            yield file
        put_in_place(aside, path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def output_file(path: Path) -> Iterator[BinaryIO]:
    """``whole_file`` at a place that a user has named.

    Raises UsageError if its folder does not exist, BseqError if writing fails.
    """
    if not path.parent.is_dir():
        raise UsageError(f"can't write {str(path)!r}: there is no folder {str(path.parent)!r}; create it first")
    try:
        with whole_file(path) as file:
            yield file
    except OSError as error:
        raise BseqError(f"can't write {str(path)!r}: {error}") from error


def write_bytes(path: Path, data: bytes, disk: Disk = DISK) -> None:
    """Write a file whole. Raises OSError."""
    aside = aside_of(path)
    try:
        disk.write(aside, data)
        put_in_place(aside, path, disk)
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole. Raises OSError."""
    write_bytes(path, text.encode())


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON file whole; its folder is made if need be. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(document, indent=1) + "\n")
