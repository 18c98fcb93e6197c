"""Store versions, byte by byte: what the tests of damaged stores share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bseq_plugin.store.disk import file_entry
from bseq_plugin.store.store import CURRENT, Store
from bseq_plugin.store.version import MANIFEST


def rewrite_manifest(store: Store, name: str, change: Callable[[dict[str, Any]], object]) -> str:
    """Change a version's manifest and point the store at it; the new name."""
    folder = store.folder(name)
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    raw = json.dumps(manifest).encode()
    (folder / MANIFEST).write_bytes(raw)
    digest = hashlib.sha256(raw).hexdigest()
    renamed = folder.with_name(f"{name[:9]}-{digest[:8]}")
    folder.rename(renamed)
    (store.path / CURRENT).write_text(json.dumps({"version": renamed.name, "manifest_sha256": digest}))
    return renamed.name


def reseal(store: Store, name: str, change: Callable[[Path, dict[str, Any]], object]) -> str:
    """Change a version's files or manifest and make all checksums right again; the new name."""
    folder = store.folder(name)

    def changed(manifest: dict[str, Any]) -> None:
        change(folder, manifest)
        for file_name in manifest["files"]:
            manifest["files"][file_name] = file_entry(folder / file_name)

    return rewrite_manifest(store, name, changed)
