"""The time split of the tasks on the grocery log, and the encoders that know nothing beyond it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from bseq_behaviour.propensity.rfm import event_values

from bseq_plugin import InterestModel, Recipe, train
from bseq_plugin.demo.data import DemoData
from bseq_plugin.events.events import instant_us
from bseq_plugin.events.sequences import Sequences


def at(day: str) -> int:
    """Microseconds of midnight, UTC."""
    return instant_us(f"{day}T00:00:00+00:00")


# The encoder ends in August. Heads and trees learn from windows of 28 days that end before November, are stopped on
# November, and are judged on the 28 days from 1 December.
ENCODER_UNTIL = "2017-09-01"
TRAIN_AT = [at(f"2017-09-{day:02d}") for day in (1, 8, 15, 22, 29)]
VALIDATION_AT, TEST_AT, LOG_END = at("2017-11-01"), at("2017-12-01"), at("2017-12-31")
DAYS = 28.0


@dataclass(frozen=True)
class Case:
    """The log in rows of one encoder."""

    data: DemoData
    model: InterestModel

    @cached_property
    def log(self) -> Sequences:
        """All of the year."""
        return Sequences.from_events(self.data.events, self.model.vocabulary)

    @cached_property
    def values_T(self) -> np.ndarray:
        """Money of each event of ``log``."""
        return event_values(self.data.events)

    def categories(self, column: str) -> tuple[np.ndarray, list[str]]:
        """(int64 [V + 1], -1 for the unknown item; names)."""
        table = self.data.items.drop_duplicates("item_id").set_index("item_id")[column]
        codes, names = pd.factorize(table.reindex(self.model.vocabulary.item_ids).fillna("?"), sort=True)
        return np.concatenate([[-1], codes]).astype(np.int64), [str(name) for name in names]


def encoder(data: DemoData, until: str, seed: int, epochs: int, folder: Path) -> InterestModel:
    """The demo's encoder, trained on purchases before ``until``; one that ``folder`` has already is taken as it is."""
    path = folder / f"{until}-{seed}"
    if (path / "model").is_dir():
        return InterestModel.from_run(path)
    recipe = Recipe.load("completejourney").replace(
        split="none", training={"epochs": epochs, "stop_after": epochs, "seed": seed}
    )
    run = train(data.events.before(at(until)), recipe, path, items=data.items)
    return InterestModel.from_run(run.path)
