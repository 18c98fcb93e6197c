"""A safetensors file written a block at a time, by one process or by several at once.

safetensors' own writer wants whole tensors in memory. The format is simple enough to do without: eight bytes with the
length of a JSON header, the header, then the tensors' bytes, row after row.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

BYTES = 4  # of a float32
ROWS_PER_WRITE = 1 << 16  # what is mapped at a time counts as memory of the process


def create(path: Path, shapes: Mapping[str, tuple[int, int]]) -> None:
    """Make a file of float32 matrices, all zeros, its space on the device reserved. Raises OSError if there is none."""
    header: dict[str, object] = {}
    end = 0
    for name, (rows, columns) in shapes.items():
        start, end = end, end + rows * columns * BYTES
        header[name] = {"dtype": "F32", "shape": [rows, columns], "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of eight
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.flush()
        # a full disk shows here, as an error, and not in the middle of a mapped write, as a signal
        os.posix_fallocate(file.fileno(), 0, 8 + len(text) + end)


def write(path: Path, name: str, values: Tensor, row: int = 0, column: int = 0) -> None:
    """Put ``values`` [n, d] float32 where the block from (``row``, ``column``) on stands in tensor ``name``."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(length))[name]
    width, begin = entry["shape"][1], 8 + length + entry["data_offsets"][0]
    for start in range(0, len(values), ROWS_PER_WRITE):
        block = values[start : start + ROWS_PER_WRITE]
        offset = begin + (row + start) * width * BYTES
        mapped = np.memmap(path, np.float32, "r+", offset, (len(block), width))
        mapped[:, column : column + block.shape[1]] = block.numpy()
        mapped.flush()
        del mapped
