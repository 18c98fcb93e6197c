"""Linear layers begin as the identity or as nothing, so that attention begins as a mean.

From random layers an encoder has to find first that what was is the best guess at what will be; on logs where people
come back to the same items most of the training goes into that.
"""

from __future__ import annotations

import torch
from torch import nn


class IdentityLinear(nn.Linear):
    """A linear layer that begins as the identity; as wide as it is long."""

    def reset_parameters(self) -> None:
        """Set the identity; also called when a model made on the meta device gets its memory."""
        nn.init.eye_(self.weight)
        nn.init.zeros_(self.bias)


class IdentityValues(nn.Linear):
    """A layer of queries, keys and values at once, the values last: these begin as what goes in."""

    def reset_parameters(self) -> None:
        """Set the values to the identity, and draw queries and keys."""
        super().reset_parameters()
        values = slice(self.out_features - self.in_features, None)
        with torch.no_grad():
            nn.init.eye_(self.weight[values])
            self.bias[values] = 0.0


class ZeroLinear(nn.Linear):
    """A linear layer that begins at zero."""

    def reset_parameters(self) -> None:
        """Set weights and biases to zero."""
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
