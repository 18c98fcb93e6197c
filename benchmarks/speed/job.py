"""The job that speed is measured on: the recipe `reference` on a log of item sequences."""

from __future__ import annotations

from pathlib import Path

import numpy as np

SETTINGS = ["events.features=[]"]


def made_up_log(n_users: int, n_items: int, seed: int) -> str:
    """Return lines of users with 3 + geometric(mean 6) events of Zipf-popular items."""
    rng = np.random.default_rng(seed)
    weights = 1.0 / np.arange(1, n_items + 1)
    items = rng.choice(n_items, (n_users, 40), p=weights / weights.sum())
    lengths = np.minimum(3 + rng.geometric(1 / 6, n_users), 40)
    return "".join(
        f"{u} {' '.join(map(str, row[:n]))}\n" for u, (row, n) in enumerate(zip(items, lengths, strict=True))
    )


def sequences_file(given: Path | None, folder: Path) -> Path:
    """Return the file that was given, or one with a made-up log of 5,000 users and 12,000 items in ``folder``."""
    if given is not None:
        return given
    path = folder / "sequences.txt"
    path.write_text(made_up_log(5_000, 12_000, seed=0), encoding="utf-8")
    return path
