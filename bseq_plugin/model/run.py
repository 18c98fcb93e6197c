"""A run directory, and its one reader.

RUN/run.json             {"status": "training" or "complete", "best_epoch", "metrics", ...}; replaced atomically
RUN/recipe.json          the resolved recipe
RUN/vocabulary.parquet   RUN/sequences.parquet
RUN/metrics.jsonl        one object an epoch
RUN/tensorboard/         RUN/checkpoints/
RUN/model/               the best model (see InterestModel), there once the run is complete
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import nn

from bseq_plugin.data.prepare import PreparedLog
from bseq_plugin.data.splits import training_histories
from bseq_plugin.distributed import world
from bseq_plugin.errors import RunError
from bseq_plugin.events.sequences import Sequences
from bseq_plugin.events.vocabulary import Vocabulary
from bseq_plugin.files import SCRATCH, aside_of, put_in_place, write_json, write_text
from bseq_plugin.model.from_host import model_of_host
from bseq_plugin.model.interest_model import InterestModel
from bseq_plugin.model.towers import Towers
from bseq_plugin.recipe.recipe import Recipe


@dataclass(frozen=True)
class Run:
    """A finished or unfinished run on disk."""

    path: Path

    @classmethod
    def open(cls, run: Run | str | Path) -> Run:
        """Return the run in a folder, or the run that is given. Raises RunError for a folder that is no run."""
        if isinstance(run, Run):
            return run
        opened = cls(Path(run))
        opened.info  # noqa: B018, raises for another folder
        return opened

    @classmethod
    def from_host(
        cls,
        host: nn.Module | Towers,
        out: str | Path,
        *,
        histories: Sequences,
        vocabulary: Vocabulary,
        trained_until: object = None,
    ) -> Run:
        """Make a run of what a host model has trained, so that it is evaluated, published, explained and warm-started
        from like any other. Collective: every rank calls it. Arguments are those of ``bseq.publish``.

        A warm start begins with its weights, and with an optimizer that has no memory of them.

        Raises RunError if ``out`` is there already, and what ``bseq.publish`` raises of a host; nothing is left then.
        """
        run = cls(Path(out))
        with world() as here:
            here.on_first(run._require_new)
            model = model_of_host(host, vocabulary, histories, trained_until)
            here.on_first(lambda: run._keep(cast(InterestModel, model), histories))
        return run

    def _require_new(self) -> None:
        if self.path.exists() and not (self.path.is_dir() and not any(self.path.iterdir())):
            raise RunError(f"{self.path} is not empty; give a new folder")

    def _keep(self, model: InterestModel, histories: Sequences) -> None:
        """Leave the whole run, or nothing."""
        place = self.path.resolve()
        aside = Run(aside_of(place))
        try:
            aside._write(model, histories)
            put_in_place(aside.path, place)
        finally:
            shutil.rmtree(aside.path, ignore_errors=True)

    def _write(self, model: InterestModel, histories: Sequences) -> None:
        (self.path / "model").mkdir(parents=True)
        model.save(self.path / "model")
        write_text(self.path / "recipe.json", json.dumps(model.recipe.as_dict(), indent=1))
        model.vocabulary.save(self.path / "vocabulary.parquet")
        histories.save(self.path / "sequences.parquet", model.vocabulary)
        write_text(self.path / "metrics.jsonl", "")
        self.update({"status": "complete", "from_host": True, "best_epoch": 0, "epochs": 0, "validation": {}})

    @property
    def info(self) -> dict[str, Any]:
        """Return the content of ``run.json``. Raises RunError if there is none."""
        file = self.path / "run.json"
        if not file.is_file():
            raise RunError(f"{self.path} is not a run directory: it has no run.json")
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return content

    @property
    def files(self) -> dict[str, Path]:
        """Return all files of the run by their names within it, for example ``model/items.safetensors``."""
        paths = sorted(path for path in self.path.rglob("*") if path.is_file())
        return {path.relative_to(self.path).as_posix(): path for path in paths}

    def model(self) -> InterestModel:
        """Return the best model. Raises RunError if the run is not finished."""
        return InterestModel.from_run(self.path)

    def epochs(self) -> list[dict[str, Any]]:
        """Return what ``metrics.jsonl`` says of each epoch."""
        lines = (self.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    @property
    def is_half_begun(self) -> bool:
        """Return whether all there is may come from a killed ``begin``, which writes ``run.json`` last."""
        if not self.path.is_dir():
            return False
        names = {path.name for path in self.path.iterdir() if not path.name.startswith(SCRATCH)}
        return names <= {"recipe.json", "vocabulary.parquet", "sequences.parquet"}

    @property
    def recipe(self) -> Recipe:
        """Return the resolved recipe."""
        return Recipe.stored(json.loads((self.path / "recipe.json").read_text(encoding="utf-8")), self.path)

    def vocabulary(self) -> Vocabulary:
        """Return the item and event-type ids."""
        return Vocabulary.load(self.path / "vocabulary.parquet")

    def sequences(self) -> Sequences:
        """Return the whole log, held-out part included; of a log in partitions, a sample of users.

        Raises RunError if the run has none.
        """
        file = self.path / "sequences.parquet"
        if not file.is_file():
            raise RunError(f"{self.path} has no sequences.parquet; is it a run directory?")
        return Sequences.load(file, self.vocabulary())

    def training_part(self) -> Sequences:
        """Return the histories that training learned from: the log without its held-out part."""
        return training_histories(self.sequences(), self.recipe.split)

    def begin(self, log: PreparedLog, warm_start: str | Path | None = None) -> None:
        """Write what training starts from; ``warm_start`` is the run whose weights it begins with."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.path / "recipe.json", json.dumps(log.recipe.as_dict(), indent=1))
        log.vocabulary.save(self.path / "vocabulary.parquet")
        log.sequences.save(self.path / "sequences.parquet", log.vocabulary)
        info: dict[str, Any] = {
            "status": "training",
            "log": log.summary,
            "attributes_sha256": None if log.attributes is None else log.attributes.digest,
        }
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
