"""Sequence-interest encoders for TorchRec pipelines.

The public names stand in ``__init__.pyi``. They are imported when they are first used, so that ``import bseq_plugin``
is quick and needs neither torch, FAISS nor transformers.
"""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path
from typing import Any

__version__ = "0.2.0"

_STUB = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
_HOME = {name.name: node.module for node in _STUB.body if isinstance(node, ast.ImportFrom) for name in node.names}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'bseq_plugin' has no attribute {name!r}")
    try:
        value = getattr(import_module(_HOME[name]), name)
    except ModuleNotFoundError as error:
        if error.name not in ("torchrec", "fbgemm_gpu"):
            raise
        from bseq_plugin.errors import MissingDependencyError

        raise MissingDependencyError(
            f"bseq_plugin.{name} needs {error.name}. CPU: pip install --no-deps -r requirements/cpu.txt; "
            "GPU: pip install 'bseq-plugin[gpu]'"
        ) from error
    globals()[name] = value  # the next access is a plain attribute
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
