"""What `make bench-behaviour` has trained, and the lists made of it."""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.behaviour.tables import coverage
from benchmarks.harness import commit
from bseq_plugin import InterestModel, Recipe, Sequences, train
from bseq_plugin.data.splits import time_window
from bseq_plugin.demo.data import DemoData
from bseq_plugin.evaluation.rankers import Ranker
from bseq_plugin.events.events import instant_us
from bseq_plugin.metrics import ranking_metrics, top_k_items
from bseq_plugin.serving.diversity import Counted, RowDiversity
from bseq_plugin.serving.hits import Hits

VALIDATION_AT, TEST_AT, DAYS = "2017-11-01T00:00:00+00:00", "2017-12-01T00:00:00+00:00", 28.0
MONTHS = {"november": VALIDATION_AT, "december": TEST_AT}
KS = (20, 50)
Values = dict[str, np.ndarray]


@dataclass(frozen=True)
class Lists:
    """How lists are made of a model's interests: ``Diversity`` over four times as many candidates, as retrieval does
    it, and of the first interest alone.
    """

    diversity: float = 0.0
    counts: Counted = "pairs"
    first_alone: bool = False

    @property
    def suffix(self) -> str:
        """For the name of a file."""
        spread = f"-{self.diversity:g}" if self.diversity else ""
        return spread + ("-categories" if self.counts == "categories" else "") + ("-first" if self.first_alone else "")


@dataclass
class Encoded:
    """A trained model and the interests of all households at one instant, for all the lists that are made of them."""

    model: InterestModel
    log: Sequences
    at: str
    facts: dict[str, Any]
    categories_V: np.ndarray
    interests_UKD: torch.Tensor = field(init=False)
    users: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        histories = self.log.between(None, instant_us(self.at))
        self.interests_UKD, self.users = self.model.encode(histories), histories.user_ids

    def ranker(self, lists: Lists) -> Ranker:
        """Of ``lists``."""
        spread = RowDiversity(
            lists.diversity, np.where(self.categories_V > 0, self.categories_V, -1)[1:], 4, lists.counts
        )

        def rank(histories: Sequences, k: int, mask_seen: bool) -> np.ndarray:
            places = np.searchsorted(self.users, histories.user_ids)
            interests_UKD = self.interests_UKD[torch.from_numpy(places)][:, : 1 if lists.first_alone else None]
            excluded = (histories.offsets, histories.items) if mask_seen else None
            depth = 4 * k if lists.diversity else k
            pool_UP = top_k_items(interests_UKD, self.model.item_vectors_VD, depth, excluded)
            if not lists.diversity:
                return pool_UP
            vectors_UPD = self.model.item_vectors_VD[torch.from_numpy(np.maximum(pool_UP, 0))]
            scores_UP = torch.einsum("ukd,upd->ukp", interests_UKD, vectors_UPD).amax(1).numpy()
            users_N, places_N = np.nonzero(pool_UP > 0)
            hits = Hits(users_N, pool_UP[users_N, places_N] - 1, scores_UP[users_N, places_N], np.zeros_like(users_N))
            kept = hits.take(spread.chosen(hits, k))
            top_UK = np.full((histories.n_users, k), -1, np.int64)
            top_UK[kept.users_N, kept.ranks() - 1] = kept.rows_N + 1
            return top_UK

        return rank


def measured(rank: Ranker, log: Sequences, categories_V: np.ndarray, at: str) -> Values:
    """Metric -> one number a household, on the 28 days from ``at``; ``coverage@k``: categories in the list."""
    held_out = time_window(log, instant_us(at), DAYS)
    found: Values = {}
    for name, part, mask in (("all", held_out, False), ("new", held_out.new_items_only(), True)):
        top_UK = rank(part.histories, max(KS), mask)
        values = ranking_metrics(top_UK, part.target_offsets, part.target_items, list(KS))
        found |= {f"{name} {metric}": v for metric, v in values.items() if not metric.startswith("mrr")}
        found |= {f"{name} categories@{k}": coverage(top_UK[:, :k], categories_V) for k in KS}
    return found


@dataclass
class Trainings:
    """What was trained and measured, kept in ``folder``."""

    data: DemoData
    folder: Path
    every: int
    month: str
    encoded: dict[str, Encoded] = field(default_factory=dict)

    def values(self, recipe: Recipe, lists: Lists) -> Values:
        """``measured`` of one training, read from the folder if it was done before."""
        key = hashlib.sha256(json.dumps([recipe.as_dict(), self.every], sort_keys=True).encode()).hexdigest()[:16]
        month = "" if self.month == "december" else f"-{self.month}"
        path = self.folder / f"{key}{lists.suffix}{month}.npz"
        if not path.is_file():
            if key not in self.encoded:
                self.encoded[key] = self.encode(recipe, key)
            found = self.encoded[key]
            values = measured(found.ranker(lists), found.log, found.categories_V, found.at)
            np.savez(path, facts=json.dumps(found.facts), **values)
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}

    def encode(self, recipe: Recipe, key: str) -> Encoded:
        """The model of ``recipe``, trained if it was not, and its interests."""
        model, facts = model_of(self.data, recipe, self.folder / key)
        log = Sequences.from_events(self.data.events, model.vocabulary)
        return Encoded(model, log, MONTHS[self.month], facts, categories_of(self.data, model.vocabulary.item_ids))


def model_of(data: DemoData, recipe: Recipe, folder: Path) -> tuple[InterestModel, dict[str, Any]]:
    """(model, facts of its training), trained if ``folder`` is not there."""
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            known = data.events.before(instant_us(TEST_AT))
            run = train(known, recipe, Path(scratch) / "run", items=data.items, progress=False)
            facts = {name: run.info[name] for name in ("best_epoch", "train_seconds", "validation")}
            model = InterestModel.from_run(run.path)
            facts["n_dense"] = sum(p.numel() for n, p in model.encoder.named_parameters() if "embedding_coll" not in n)
            facts["commit"] = commit()
            (run.path / "model" / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
            (run.path / "model").rename(folder)
    return InterestModel.load(folder), json.loads((folder / "facts.json").read_text(encoding="utf-8"))


def categories_of(data: DemoData, item_ids: np.ndarray) -> np.ndarray:
    """int64 [V + 1], a number for each item's product category, 0 for none."""
    labels = data.items.set_index("item_id")["product_category"].reindex(item_ids)
    return np.concatenate([[0], labels.astype("category").cat.codes.to_numpy(np.int64) + 1])
