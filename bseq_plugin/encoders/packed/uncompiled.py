"""Where the graphs of ``torch.compile`` end.

Which users share a line is decided by sorting lengths in lists of Python. Traced, that is one graph for every batch, or
with ``torch._dynamo.config.capture_scalar_outputs``, which TorchRec's ``TrainPipelinePT2`` sets, the error
``GuardOnDataDependentSymNode``. So one graph ends before it and the next one begins with the finished layout.

Importing this imports the compiler, which takes as long as torch itself: read it only where a graph is being made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

Given = ParamSpec("Given")
Found = TypeVar("Found")


@torch.compiler.disable(reason="it is decided in Python, from what tensors hold")  # type: ignore[no-untyped-call, untyped-decorator]
def uncompiled(function: Callable[Given, Found], *given: Given.args, **named: Given.kwargs) -> Found:
    """Return ``function(*given, **named)``, as part of no graph."""
    return function(*given, **named)
