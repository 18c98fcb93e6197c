"""What time, sessions and several interests are worth on a year of grocery purchases.

    python benchmarks/behaviour.py --table cross_session --seeds 0,1,2     # needs: pip install -e '.[demo]'
    python benchmarks/behaviour.py --table interests --seeds 0,1,2
    python benchmarks/behaviour.py --table cross_session --rows "causal, ids only; hstu, time; cross_session"
    python benchmarks/behaviour.py --every 8 --epochs 1 --seeds 0          # to see that it runs

Time split of the demo: trained on purchases before November 2017, the best epoch chosen on November, tested on the 28
days from 1 December with histories up to there. Every row has the demo's recipe (item attributes, popularity columns,
everything bought in 28 days as targets) but for what its name says: the encoder, and what it reads of an event beside
the item. The latest 100 events are read. NDCG@20 and Recall over all products and over those new to the household, 95 %
bootstrap intervals over households of the mean of the seeds; differences are paired. What has been trained is kept in
benchmarks/results/behaviour/, so that an interrupted call goes on. Writes benchmarks/results/behaviour.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from behaviour_tables import BEGUN_AS_A_MEAN, FLOORS, TABLES, claims_of, coverage
from rich.console import Console
from rich.progress import track

from bseq_plugin import InterestModel, Recipe, Sequences, train
from bseq_plugin.cli.demo_data import DemoData, load
from bseq_plugin.data.events import instant_us
from bseq_plugin.data.splits import time_window
from bseq_plugin.data.vocabulary import Vocabulary
from bseq_plugin.evaluation.bootstrap import bootstrap_interval, paired_bootstrap_interval
from bseq_plugin.evaluation.defaults import default_floors
from bseq_plugin.evaluation.rankers import Ranker, floor_ranker, interest_ranker
from bseq_plugin.metrics import ranking_metrics
from bseq_plugin.retrieval.diversity import RowDiversity
from bseq_plugin.retrieval.hits import Hits

VALIDATION_AT, TEST_AT, DAYS = "2017-11-01T00:00:00+00:00", "2017-12-01T00:00:00+00:00", 28.0
RESULTS = Path(__file__).parent / "results" / "behaviour.json"
KS = (20, 50)
note = Console(stderr=True)
Values = dict[str, np.ndarray]


def measured(rank: Ranker, log: Sequences, n_items: int, categories_V: np.ndarray) -> Values:
    """Metric -> one number a household, on the test window; ``coverage@k`` is the number of categories in the list."""
    held_out = time_window(log, instant_us(TEST_AT), DAYS)
    found: Values = {}
    for name, part, mask in (("all", held_out, False), ("new", held_out.new_items_only(), True)):
        top_UK = rank(part.histories, max(KS), mask)
        values = ranking_metrics(top_UK, part.target_offsets, part.target_items, list(KS))
        found |= {f"{name} {metric}": v for metric, v in values.items() if not metric.startswith("mrr")}
        found |= {f"{name} categories@{k}": coverage(top_UK[:, :k], categories_V) for k in KS}
    return found


def trained(data: DemoData, recipe: Recipe, folder: Path, every: int, diversity: float) -> Values:
    """``measured`` of one training, read from ``folder`` if it was done before."""
    key = hashlib.sha256(json.dumps([recipe.model_dump(), every], sort_keys=True).encode()).hexdigest()[:16]
    path = folder / (f"{key}-{diversity:g}.npz" if diversity else f"{key}.npz")
    if not path.is_file():
        model, facts = model_of(data, recipe, folder / key)
        log = Sequences.from_events(data.events, model.vocabulary)
        categories_V = categories_of(data, model.vocabulary.item_ids)
        rank = diverse_ranker(model, categories_V, diversity) if diversity else interest_ranker(model)
        values = measured(rank, log, model.vocabulary.n_items, categories_V)
        np.savez(path, facts=json.dumps(facts), **values)
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


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


def diverse_ranker(model: InterestModel, categories_V: np.ndarray, weight: float) -> Ranker:
    """Interests, then ``Diversity`` with that weight over four times as many candidates, as retrieval does it."""
    spread = RowDiversity(weight, np.where(categories_V > 0, categories_V, -1)[1:], 4)

    def rank(histories: Sequences, k: int, mask_seen: bool) -> np.ndarray:
        pool_UP = interest_ranker(model)(histories, 4 * k, mask_seen)
        interests_UKD = model.encode(histories)
        vectors_UPD = model.item_vectors_VD[torch.from_numpy(np.maximum(pool_UP, 0))]
        scores_UP = torch.einsum("ukd,upd->ukp", interests_UKD, vectors_UPD).amax(1).numpy()
        users_N, places_N = np.nonzero(pool_UP > 0)
        hits = Hits(users_N, pool_UP[users_N, places_N] - 1, scores_UP[users_N, places_N], np.zeros_like(users_N))
        kept = hits.take(spread.chosen(hits, k))
        top_UK = np.full((histories.n_users, k), -1, np.int64)
        top_UK[kept.users_N, kept.ranks() - 1] = kept.rows_N + 1
        return top_UK

    return rank


def categories_of(data: DemoData, item_ids: np.ndarray) -> np.ndarray:
    """int64 [V + 1], a number for each item's product category, 0 for none."""
    labels = data.items.set_index("item_id")["product_category"].reindex(item_ids)
    return np.concatenate([[0], labels.astype("category").cat.codes.to_numpy(np.int64) + 1])


def floors(data: DemoData, recipe: Recipe) -> dict[str, Values]:
    """The floors of ``FLOORS``, fitted on everything before the test."""
    cut_us = instant_us(TEST_AT)
    vocabulary = Vocabulary.from_events(data.events.before(instant_us(VALIDATION_AT)), recipe.min_item_count)
    log = Sequences.from_events(data.events, vocabulary)
    known, found = log.between(None, cut_us), {}
    for floor in default_floors(known, cut_us):
        if floor.name in FLOORS:
            floor.fit(known, vocabulary.n_items)
            ranker = floor_ranker(floor, vocabulary.n_items)
            found[floor.name] = measured(ranker, log, vocabulary.n_items, categories_of(data, vocabulary.item_ids))
    return found


def summary(of_seeds: list[Values], others: dict[str, list[Values]]) -> dict[str, Any]:
    """Means over seeds and households with intervals, and paired differences to ``others``, the baseline first."""
    out: dict[str, Any] = {}
    for metric in [name for name in of_seeds[0] if name != "facts"]:
        mean_U = np.mean([values[metric] for values in of_seeds], axis=0)
        low, high = bootstrap_interval(mean_U)
        out[metric] = {"mean": float(mean_U.mean()), "low": low, "high": high, "over": {}}
        out[metric]["seeds"] = [float(values[metric].mean()) for values in of_seeds]
        for name, other in others.items():
            base_U = np.mean([values[metric] for values in other], axis=0)
            low, high = paired_bootstrap_interval(mean_U, base_U)
            difference = {"mean": float((mean_U - base_U).mean()), "low": low, "high": high}
            out[metric]["over"][name] = difference
            out[metric].setdefault("difference", difference)
    if "facts" in of_seeds[0]:
        out["runs"] = [json.loads(str(values["facts"])) for values in of_seeds]
    return out


def commit() -> str:
    """The commit that is checked out."""
    root = Path(__file__).parent
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def main() -> int:
    """Trains what is missing, prints the tables, writes the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", choices=sorted(TABLES), action="append", help="default: all")
    parser.add_argument("--rows", default="", help="only the rows of these names, with semicolons between them")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--every", type=int, default=1, help="every n-th household")
    parser.add_argument("--threads", type=int, default=0)
    chosen = parser.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    data = load("completejourney", chosen.every)
    seeds = [int(seed) for seed in chosen.seeds.split(",")]
    base = Recipe.load("completejourney").replace(
        split="time", validation_at=VALIDATION_AT, test_at=TEST_AT, horizon_days=DAYS, epochs=chosen.epochs,
        patience=chosen.epochs, max_length=100, encoder="causal", encoder_options={},
    )  # fmt: skip
    document: dict[str, Any] = {"command": shlex.join(["python", *sys.argv]), "commit": commit(),
                                "machine": {"processor": platform.processor() or platform.machine(),
                                            "threads": torch.get_num_threads()},
                                "figures": {}, "claims": []}  # fmt: skip
    if RESULTS.is_file():
        document["figures"] = json.loads(RESULTS.read_text(encoding="utf-8"))["figures"]
    words = [word.strip() for word in chosen.rows.split(";") if word.strip()]
    for table in chosen.table or sorted(TABLES):
        names = [name for name in TABLES[table] if not words or name in words]
        jobs = [(name, seed) for seed in seeds for name in names]
        values: dict[str, list[Values]] = {name: [] for name in names}
        for name, seed in track(jobs, description=table, console=note):
            settings = dict(TABLES[table][name])
            diversity = float(settings.pop("diversity", 0.0))
            recipe = base.replace(**settings, seed=seed)
            values[name].append(trained(data, recipe, RESULTS.with_suffix(""), chosen.every, diversity))
        others = {name: values[name] for name in (next(iter(TABLES[table])), BEGUN_AS_A_MEAN) if name in values}
        rows = {name: summary(found, others) for name, found in values.items()}
        if not words:
            rows |= {name: summary([found], others) for name, found in floors(data, base).items()}
        document["figures"][table] = {"seeds": seeds, "epochs": chosen.epochs, "every": chosen.every, "rows": rows}
        show(table, rows)
    document["claims"] = claims_of(document["figures"])
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    note.print(f"written: {RESULTS}")
    return 0


def show(table: str, rows: dict[str, Any]) -> None:
    """A line a row."""
    columns = ("all ndcg@20", "all recall@20", "all categories@20", "new ndcg@20", "new recall@20")
    print(f"\n{table}\n{'':<34}" + "".join(f"{column:>28}" for column in columns))
    for name, row in rows.items():
        cells = [f"{row[c]['mean']:.4f} ({row[c]['low']:.4f} to {row[c]['high']:.4f})" for c in columns]
        print(f"{name:<34}" + "".join(f"{cell:>28}" for cell in cells))
        for other, d in row[columns[0]]["over"].items():
            print(f"{'':<34}{d['mean']:+.4f} ({d['low']:+.4f} to {d['high']:+.4f}) against {other}")


if __name__ == "__main__":
    sys.exit(main())
