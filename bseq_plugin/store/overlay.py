"""What a delta version has on top of the index it keeps: rows that changed, rows that came, rows that went.

Shape letters: V vectors, D width, S stale rows, R removed rows. Rows here are index rows: vocabulary row minus 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from bseq_plugin.errors import StoreError
from bseq_plugin.store.version import StoreVersion

OVERLAY_FILE = "overlay.safetensors"


@dataclass(frozen=True)
class Overlay:
    """``n_base``: rows that the index was built of. ``stale_S``: those of them that have other vectors now.
    ``removed_R``: rows that are never shown (tombstones). Both int64, ascending.
    """

    n_base: int
    stale_S: np.ndarray
    removed_R: np.ndarray

    def save(self, folder: Path) -> None:
        """Write ``overlay.safetensors``."""
        columns = {"n_base": np.array([self.n_base], np.int64), "stale": self.stale_S, "removed": self.removed_R}
        save_file({name: torch.from_numpy(values.copy()) for name, values in columns.items()}, folder / OVERLAY_FILE)

    @classmethod
    def of(cls, version: StoreVersion, n_items: int) -> Overlay:
        """Return that of a version; one published in full has nothing on top. Raises StoreError if it does not fit."""
        nothing = np.empty(0, np.int64)
        if not version.has(OVERLAY_FILE):
            return cls(n_items, nothing, nothing)
        values = {name: value.numpy() for name, value in load_file(version.file(OVERLAY_FILE)).items()}
        overlay = cls(int(values["n_base"][0]), values["stale"], values["removed"])
        limits = (n_items + 1, overlay.n_base, n_items)
        for rows, limit in zip((np.array([overlay.n_base]), overlay.stale_S, overlay.removed_R), limits, strict=True):
            if len(rows) and not 0 <= rows.min() <= rows.max() < limit:
                raise StoreError(f"version {version.name}: {OVERLAY_FILE} has rows beyond its {n_items} items")
        return overlay

    def allowed(self, allowed_V: np.ndarray | None, n_items: int) -> np.ndarray | None:
        """The items that a filter allows without the removed ones; None = all."""
        if not len(self.removed_R):
            return allowed_V
        left_V = np.ones(n_items, bool) if allowed_V is None else allowed_V.copy()
        left_V[self.removed_R] = False
        return left_V
