"""A keyed signature beside a manifest: what checksums alone can't do.

Whoever may write to a store can change files, manifest and CURRENT so that all checksums are right again. With a secret
key that only publishers and readers have, a reader refuses what no holder of the key has signed. It says who published
a version, not that it is the newest one: an old signed version can still be put back.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from pathlib import Path

from bseq_plugin.errors import StoreError, UsageError
from bseq_plugin.store.disk import read_small

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
