"""The grocery recipe on September, October and November 2017, each predicted by a model trained up to its first day.

    make bench-windows
    make bench-windows ARGS="--set objective.popularity_days=[]"

Prints NDCG@20 over the 28 days from each first day, for products new to the household (those it has are masked) and for
all products, beside user kNN, the best baseline on new products. What a setting is worth is read off here; December,
the demo's test, is left alone. Two minutes a call on two cores; --windows 2017-11 is quicker. Writes
benchmarks/results/windows.json.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks import harness
from bseq_plugin import InterestModel, Sequences, train
from bseq_plugin.cli.main import quiet
from bseq_plugin.data.auto_recipe import choose_recipe
from bseq_plugin.data.splits import time_window
from bseq_plugin.demo.data import DemoData, load
from bseq_plugin.evaluation.neighbour_baselines import UserKnn
from bseq_plugin.evaluation.rankers import fitted_rankers, interest_ranker
from bseq_plugin.evaluation.report import MODEL, compare
from bseq_plugin.events.events import DAY_US, instant_us
from bseq_plugin.recipe.recipe import Recipe

DAYS = 28.0
BASELINE = "user_knn"


def one_window(data: DemoData, recipe: Recipe, month: str) -> dict[str, float]:
    """Return NDCG@20 of model and baseline on the 28 days from the first of ``month``."""
    cut_us = instant_us(f"{month}-01T00:00:00+00:00")
    with tempfile.TemporaryDirectory() as folder:
        run = train(data.events.before(cut_us), recipe, Path(folder) / "run", items=data.items, progress=False)
        model = InterestModel.from_run(run.path)
    log = Sequences.from_events(data.events.before(cut_us + int(DAYS * DAY_US)), model.vocabulary)
    known, n_items = log.between(None, cut_us), model.vocabulary.n_items
    rankers = {**fitted_rankers([UserKnn(at_us=cut_us)], known, n_items), MODEL: interest_ranker(model)}
    held_out = time_window(log, cut_us, DAYS)
    new = compare(held_out.new_items_only(), rankers, n_items, (20,), "mask")
    every = compare(held_out, rankers, n_items, (20,), "keep")
    return {
        "new": new.mean(MODEL, "ndcg@20"),
        "new, user kNN": new.mean(BASELINE, "ndcg@20"),
        "all": every.mean(MODEL, "ndcg@20"),
    }


def main() -> None:
    """One row a month, and the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--windows", default="2017-09,2017-10,2017-11")
    chosen = parser.parse_args()
    quiet()
    recipe = choose_recipe("completejourney", chosen.settings).replace(split="none")
    data = load("completejourney")
    rows = {month: one_window(data, recipe, month) for month in chosen.windows.split(",")}
    rows["mean"] = {name: sum(row[name] for row in rows.values()) / len(rows) for name in next(iter(rows.values()))}
    print(f"completejourney, NDCG@20, {' '.join(chosen.settings) or 'as shipped'}")
    for month, row in rows.items():
        print(f"{month:<8}" + "".join(f"  {name} {value:.4f}" for name, value in row.items()), flush=True)
    harness.write("windows", {"settings": chosen.settings, "ndcg@20": rows})


if __name__ == "__main__":
    main()
