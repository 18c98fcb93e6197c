"""What is written has to be there after a power failure."""

from __future__ import annotations

import os
from pathlib import Path


def fsync(path: Path) -> None:
    """Force a file, or a folder's entries, to the device."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
