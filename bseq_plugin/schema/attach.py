"""The contract of an encoder that is attached to a host model (``bseq_attach``).

Shape letters: B users, I width of a user's interests side by side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from torchrec import KeyedJaggedTensor, KeyedTensor

USER_INTEREST = "user_interest"  # the one key of what comes out


class HistoryEncoder(nn.Module):
    """A module from histories to interests. It owns its embedding tables, which may be on the meta device, to be
    sharded.
    """

    @property
    def width(self) -> int:
        """The width I: the number of interests of a user times the width of one."""
        raise NotImplementedError

    def forward(self, history: KeyedJaggedTensor) -> KeyedTensor:
        """Return ``{"user_interest": [B, I]}``, float32. It is a straight line, so that TorchRec's pipeline can trace
        it.
        """
        raise NotImplementedError
