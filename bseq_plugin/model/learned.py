"""What an encoder has learned: whether gradients have come back through its interests, and through its item rows."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Value = TypeVar("Value")

INTERESTS, ITEMS = "interests", "items"
NAME = "learned"  # of the module in an encoder


class Learned(nn.Module):
    """A record that is part of an encoder's state, and so of every checkpoint of its host.

    It is written in backward, by the first gradient that is not zero. Whether an optimizer took the gradient can't be
    seen. Weights that are loaded bring the record that they were saved with; where a state has none, it stays as it is.

    Attributes:
        interests: bool scalar, whether a loss has trained what the encoder reads off a history.
        items: bool scalar, whether a loss has trained the rows of the encoder's ``item_keys``.
    """

    interests: Tensor
    items: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in (INTERESTS, ITEMS):
            self.register_buffer(name, torch.zeros((), dtype=torch.bool))

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # a compiled graph takes no hooks
    def forward(self, vectors: Tensor, name: str) -> Tensor:
        """Return ``vectors`` themselves; a gradient that comes back through them is written down under ``name``."""
        written = getattr(self, name)
        # on a GPU it would wait for the device
        if vectors.requires_grad and (written.device.type != "cpu" or not written):
            vectors.register_hook(partial(self._write, name))  # type: ignore[no-untyped-call]
        return vectors

    def _write(self, name: str, gradient: Tensor | None) -> None:
        if gradient is not None:  # of one key of a look-up that nothing was asked of, while others were
            written = getattr(self, name)
            written.logical_or_(gradient.any().to(written.device))

    def declare(self, *, items: bool) -> None:
        """Say what no gradient here could say: that the weights have learned, and whether a loss has trained ``items``.

        For weights from a checkpoint without the record, and for tables that are trained but frozen.
        """
        self.interests.fill_(True)
        self.items.fill_(items)

    def told(self) -> tuple[bool, bool]:
        """Return (interests, items)."""
        return bool(self.interests), bool(self.items)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        there = {f"{prefix}{name}": getattr(self, name) for name in (INTERESTS, ITEMS)} | dict(state_dict)
        super()._load_from_state_dict(there, prefix, *args, **kwargs)


def without_record(state: Mapping[str, Value]) -> dict[str, Value]:
    """Return the state of an encoder, or of a model with one inside, without the record."""
    records = tuple(f"{NAME}.{name}" for name in (INTERESTS, ITEMS))
    return {name: value for name, value in state.items() if not name.endswith(records)}
