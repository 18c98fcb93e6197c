"""A run directory.

RUN/run.json             {"status": "training" or "complete", "best_epoch", "metrics", ...}; replaced atomically
RUN/recipe.json          the resolved recipe
RUN/vocabulary.parquet   RUN/sequences.parquet
RUN/metrics.jsonl        one object an epoch
RUN/tensorboard/         RUN/checkpoints/
RUN/model/               the best model (see InterestModel), there once the run is complete
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bseq_plugin.data.prepare import PreparedLog, training_histories
from bseq_plugin.data.sequences import Sequences
from bseq_plugin.data.vocabulary import Vocabulary
from bseq_plugin.errors import RunError
from bseq_plugin.files import SCRATCH, write_json, write_text
from bseq_plugin.recipe.recipe import Recipe


@dataclass(frozen=True)
class Run:
    """A finished or unfinished run on disk."""

    path: Path

    @property
    def info(self) -> dict[str, Any]:
        """The content of ``run.json``. Raises RunError if there is none."""
        file = self.path / "run.json"
        if not file.is_file():
            raise RunError(f"{self.path} is not a run directory: it has no run.json")
        info: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return info

    @property
    def is_half_begun(self) -> bool:
        """Whether all there is may come from a ``begin`` that was killed: ``run.json`` is what it writes last."""
        if not self.path.is_dir():
            return False
        names = {path.name for path in self.path.iterdir() if not path.name.startswith(SCRATCH)}
        return names <= {"recipe.json", "vocabulary.parquet", "sequences.parquet"}

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe."""
        return Recipe.stored(json.loads((self.path / "recipe.json").read_text(encoding="utf-8")), self.path)

    def vocabulary(self) -> Vocabulary:
        """Load the item and event-type ids."""
        return Vocabulary.load(self.path / "vocabulary.parquet")

    def sequences(self) -> Sequences:
        """Load the whole log, held-out part included; of a log in partitions, a sample of users."""
        return Sequences.load(self.path / "sequences.parquet", self.vocabulary())

    def training_part(self) -> Sequences:
        """Return the histories that training learned from: the log without its held-out part."""
        return training_histories(self.sequences(), self.recipe.split)

    def begin(self, log: PreparedLog, warm_start: str | Path | None = None) -> None:
        """Write what training starts from; ``warm_start`` is the run whose weights it begins with."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.path / "recipe.json", json.dumps(log.recipe.as_dict(), indent=1))
        log.vocabulary.save(self.path / "vocabulary.parquet")
        log.sequences.save(self.path / "sequences.parquet", log.vocabulary)
        info = {"status": "training", "attributes_sha256": None if log.attributes is None else log.attributes.digest}
        if warm_start is not None:
            info["warm_start"] = str(warm_start)
        if log.item_vectors is not None:
            info["item_vectors_sha256"] = log.item_vectors.digest
        if log.partitions is not None:
            info |= {"partitions": str(log.partitions.folder.resolve()), "log_sha256": log.partitions.digest}
        self.update(info)

    def update(self, info: dict[str, Any]) -> None:
        """Replace ``run.json``."""
        write_json(self.path / "run.json", info)
