"""Vectors of texts on disk, found by the sha256 of the text: what was encoded once is never encoded again.

    CACHE/text/<sha256 of weights and settings>/<sha256 of the content>.part

A part is a header line (JSON: count, width), 32 bytes of sha256 for each text, and the vectors (float32). It is written
aside and renamed, so that a process that is killed loses what it was working on and nothing else, and processes may
write at once. A part whose content is not what its name says is removed.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

HASH = 32


def cache_folder() -> Path:
    """``BSEQ_CACHE``, else ``XDG_CACHE_HOME``/bseq, else ``~/.cache/bseq``."""
    given = os.environ.get("BSEQ_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bseq"


def text_hash(text: str) -> bytes:
    """sha256 of the text, byte-exact."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


class VectorCache:
    """The vectors of one set of weights and settings, named by ``key``; E wide."""

    def __init__(self, key: str, width: int, folder: Path | None = None) -> None:
        self.folder = (folder or cache_folder()) / "text" / key
        self.width = width

    def read(self, hashes: Iterable[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """(float32 [N, E], bool [N] known) for N texts; zeros where unknown."""
        wanted = {value: place for place, value in enumerate(hashes)}  # texts are distinct
        vectors_NE = np.zeros((len(wanted), self.width), np.float32)
        known_N = np.zeros(len(wanted), bool)
        for path in sorted(self.folder.glob("*.part")) if wanted and self.folder.is_dir() else []:
            part = self._part(path)
            if part is None:
                continue
            places = [(wanted[value], row) for row, value in enumerate(part[0]) if value in wanted]
            if places:
                at, rows = np.array(places).T
                vectors_NE[at] = part[1][rows]
                known_N[at] = True
        return vectors_NE, known_N

    def add(self, hashes: list[bytes], vectors_NE: np.ndarray) -> None:
        """Keep vectors. What can't be written (a full disk, no permission) raises OSError and leaves no part."""
        self.folder.mkdir(parents=True, exist_ok=True)
        head = json.dumps({"count": len(hashes), "width": self.width}).encode() + b"\n"
        content = head + b"".join(hashes) + np.ascontiguousarray(vectors_NE, np.float32).tobytes()
        handle, aside = tempfile.mkstemp(dir=self.folder, prefix=".", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.replace(aside, self.folder / f"{hashlib.sha256(content).hexdigest()}.part")
        except BaseException:
            Path(aside).unlink(missing_ok=True)
            raise

    def _part(self, path: Path) -> tuple[list[bytes], np.ndarray] | None:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != path.stem:
            path.unlink(missing_ok=True)
            return None
        head, _, body = content.partition(b"\n")
        count = int(json.loads(head)["count"])
        hashes = [body[place * HASH : (place + 1) * HASH] for place in range(count)]
        return hashes, np.frombuffer(body, np.float32, offset=count * HASH).reshape(count, self.width)
