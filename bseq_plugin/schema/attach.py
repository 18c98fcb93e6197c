"""What a host model is given when an encoder is attached to it (``bseq_attach``).

Shape letters: B users, I width of a user's interests side by side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from torchrec import KeyedJaggedTensor, KeyedTensor

USER_INTEREST = "user_interest"  # the one key of what comes out


class HistoryEncoder(nn.Module):
    """Histories in, interests out. It owns its embedding tables, which may be on the meta device, to be sharded."""

    @property
    def width(self) -> int:
        """I: the number of interests of a user times the width of one."""
        raise NotImplementedError

    def forward(self, history: KeyedJaggedTensor) -> KeyedTensor:
        """``{"user_interest": [B, I]}``, float32. A straight line, so that TorchRec's pipeline can trace it."""
        raise NotImplementedError
