"""safetensors files: written a block at a time, by one process or by several at once; or small, whole and sealed.

safetensors' own writer wants whole tensors in memory. For large ones the format is simple enough to do without: eight
bytes with the length of a JSON header, the header, then the tensors' bytes, row after row.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, contiguous_format

from bseq_plugin.errors import RunError, UsageError
from bseq_plugin.files import output_file

BYTES = 4  # of a float32
ROWS_PER_WRITE = 1 << 16  # what is mapped at a time counts as memory of the process


def create(path: Path, shapes: Mapping[str, tuple[int, int]]) -> None:
    """Make a file of float32 matrices of zeros, its space on the device reserved. Raises OSError if there is none."""
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


def save_sealed(path: Path, tensors: Mapping[str, Tensor], told: Mapping[str, str]) -> None:
    """Write tensors, what is told beside them, and a digest of both, as one file: whole or not at all.

    Folders are made; tensors may share memory. Raises UsageError for a place where no file can be, BseqError if writing
    fails; what was there before is there then.
    """
    if path.is_dir():
        raise UsageError(f"can't write {str(path)!r}: it is a folder; name a file in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"can't write {str(path)!r}: its folder can't be made ({error}); name another place") from None
    kept = {name: value.detach().clone(memory_format=contiguous_format) for name, value in tensors.items()}
    with output_file(path) as file:
        file.write(save(kept, {**told, "sha256": _digest(kept, told)}))


def load_sealed(path: Path, writer: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return (tensors, told) as they were given to ``save_sealed``.

    Raises RunError if the file is not there, not one of these (``writer`` says whose it is to be), or damaged.
    """
    if not path.is_file():
        raise RunError(f"there is no file {str(path)!r}; give one that {writer} wrote")
    try:
        with safe_open(path, "pt") as file:
            told = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
        digest = told.pop("sha256")
    except (SafetensorError, KeyError) as error:
        raise RunError(f"{str(path)!r} is not a file that {writer} wrote: {error}") from None
    if digest != _digest(tensors, told):
        raise RunError(f"{str(path)!r} is damaged: it does not hold what was saved; save it again")
    return tensors, told


def _digest(tensors: Mapping[str, Tensor], told: Mapping[str, str]) -> str:
    """Return the sha256 of the tensors and of what is told beside them."""
    weights = save(dict(sorted(tensors.items())))
    return hashlib.sha256(weights + json.dumps(dict(told), sort_keys=True).encode()).hexdigest()
