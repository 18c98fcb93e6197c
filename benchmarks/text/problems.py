"""Two logs with a tenth of their items hidden, and what a model is asked afterwards.

Shape letters: U users, N targets, V items (row 0 = unknown).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from bseq_plugin import Recipe, Sequences, Vocabulary, read_events
from bseq_plugin.data.auto_recipe import auto_recipe
from bseq_plugin.data.splits import EvaluationSet, leave_one_out, time_window
from bseq_plugin.demo.data import load
from bseq_plugin.events.events import DAY_US, Events, instant_us

SHARE = 0.1
DAYS = 28.0
MONTHS = {"validation": "2017-11", "test": "2017-12"}


@dataclass(frozen=True)
class Problem:
    """A log without its cold items, and the questions.

    Attributes:
        training: what ``train`` gets, with ``recipe``.
        items: the items table, cold items included.
        columns: those of it that are text.
        cold: ids that ``training`` has not.
        warm_log: what warm targets are asked of; ``cold_log`` has the cold events too.
        cut_us: where the future begins, None for leave one out.
        questions: name of a question, and whether what was seen counts as well (targets, and places in the lists).
        settings: those of the model that reads text.
    """

    name: str
    training: Events
    recipe: Recipe
    items: pd.DataFrame
    columns: tuple[str, ...]
    cold: np.ndarray
    warm_log: Events
    cold_log: Events
    cut_us: int | None = None
    questions: tuple[tuple[str, bool], ...] = (("", False),)
    settings: tuple[str, ...] = ()

    def asked(self, log: Events, vocabulary: Vocabulary, seen: bool) -> EvaluationSet:
        """Histories and what came after them."""
        sequences = Sequences.from_events(log, vocabulary)
        if self.cut_us is None:
            return leave_one_out(sequences, "test")
        found = time_window(sequences, self.cut_us, DAYS)
        return found if seen else found.new_items_only()

    @property
    def past(self) -> Events:
        """What had happened, cold events too; leave one out has no instant to cut at, and its log holds the answers."""
        return self.training if self.cut_us is None else self.cold_log.before(self.cut_us)


def beauty(sequences: Path, items: Path, part: str, seed: int) -> Problem:
    """Leave one out on the standard Beauty file; ``part = "validation"``: without everybody's last event."""
    events = read_events(sequences)
    if part == "validation":
        last = ~events.frame["user_id"].duplicated(keep="last")
        events = replace(events, frame=events.frame[~last].reset_index(drop=True))
    table = pd.read_csv(items, sep="\t").rename(columns={"s3rec_item_id": "item_id"})
    cold = _drawn(np.sort(events.frame["item_id"].unique()), seed)
    warm = _without(events, cold)
    recipe = auto_recipe(events)
    return Problem("beauty", warm, recipe, table, ("text_id", "keywords"), cold, warm, events)


def grocery(part: str, seed: int) -> Problem:
    """The demo's log: everything bought in the 28 days after the cut, and of that what is new to the household.

    Cold items were bought before the cut like others, and are in the histories and in the popularity columns: they are
    hidden from training alone, as products that were listed after it. Inner products without attributes were best on
    November among the recipes tried, with warm items only.
    """
    data = load("completejourney")
    cut_us = instant_us(f"{MONTHS[part]}-01T00:00:00+00:00")
    log = data.events.before(cut_us + int(DAYS * DAY_US))
    past = log.before(cut_us)
    counts = past.frame["item_id"].value_counts()
    recipe = Recipe.load("completejourney").replace(
        vectors={"similarity": "inner"}, items={"attributes": ()}, split="none"
    )
    cold = _drawn(np.sort(counts.index[counts >= recipe.items.min_count].to_numpy()), seed)
    columns = ("department", "product_category", "name")
    warm_log = _without(log, cold)
    questions = (("", True), ("new: ", False))
    training, settings = _without(past, cold), ("own_direction=0.8",)
    return Problem(
        "grocery", training, recipe, data.items, columns, cold, warm_log, log, cut_us, questions, settings
    )  # fmt: skip


def only(asked: EvaluationSet, wanted_V: np.ndarray) -> EvaluationSet:
    """The targets among the wanted rows (bool [V + 1]); users without one are left out."""
    kept_N = wanted_V[asked.target_items]
    counts_U = np.bincount(asked.target_users[kept_N], minlength=asked.n_users)
    users = np.flatnonzero(counts_U)
    offsets = np.concatenate([[0], np.cumsum(counts_U[users])]).astype(np.int64)
    return EvaluationSet(asked.histories.take(users), offsets, asked.target_items[kept_N])


def _drawn(ids: np.ndarray, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).choice(ids, int(SHARE * len(ids)), replace=False)


def _without(events: Events, cold: np.ndarray) -> Events:
    return replace(events, frame=events.frame[~events.frame["item_id"].isin(cold)].reset_index(drop=True))
