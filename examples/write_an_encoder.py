"""An encoder of your own in ten lines, trained by name. For one to share, see examples/bseq-window-mean.

python examples/write_an_encoder.py
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor, nn

import bseq_plugin as bseq
from bseq_plugin.plugins import plugin_manager


class GruEncoder(bseq.SequenceEncoder):
    """A recurrent network. x_TD are packed events, one row an event; ``padded`` makes [B, L, D] of them."""

    name = "my_gru"

    def __init__(self, dim: int, max_length: int, dropout: float, options: bseq.PartOptions | None = None) -> None:
        super().__init__(dim, max_length, dropout, options)
        self.gru = nn.GRU(dim, dim, batch_first=True)

    def forward(self, events: bseq.PackedEvents) -> Tensor:
        x_BLD, _ = events.padded()
        return events.packed(self.gru(x_BLD)[0]) if len(events.x_TD) else events.x_TD


@bseq.hookimpl
def bseq_encoders() -> list[type[bseq.SequenceEncoder]]:
    return [GruEncoder]


def main(folder: Path) -> None:
    plugin_manager().register(sys.modules[__name__], "my_encoders")  # a package does this by an entry point
    # everybody walks round the same circle of 30 items, so that the next item is known by the last one
    user = np.repeat(np.arange(150), 8)
    item = (user * 7 + np.tile(np.arange(8), 150)) % 30
    time = 1_700_000_000 + np.tile(np.arange(8), 150) * 3600
    log = pd.DataFrame({"user_id": user, "item_id": item, "timestamp": time})
    events = bseq.read_events(log, timestamp_unit="s")
    recipe = bseq.Recipe(
        encoder="my_gru", vectors={"dim": 16}, training={"epochs": 10, "batch": {"users": 32}, "dense": {"rate": 1e-2}}
    )
    run = bseq.train(events, recipe, folder / "run")
    print("best epoch", run.info["best_epoch"], run.info["validation"])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
