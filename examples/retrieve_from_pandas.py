"""From a DataFrame of events to candidates and ranking features.

    python examples/retrieve_from_pandas.py

The log is made up: every user walks through one of five shelves, item after item.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

import bseq_plugin as bseq

N_USERS, N_SHELVES, SHELF, LENGTH = 200, 5, 12, 9


def made_up_log() -> pd.DataFrame:
    generator = np.random.default_rng(0)
    user = np.repeat(np.arange(N_USERS), LENGTH)
    step = np.tile(np.arange(LENGTH), N_USERS)
    shelf = user % N_SHELVES
    place = (generator.integers(0, SHELF, N_USERS)[user] + step) % SHELF
    start = pd.Timestamp("2024-01-01", tz="UTC")
    hours = pd.to_timedelta(24 * step + generator.integers(0, 24, len(step)), unit="h")
    return pd.DataFrame({"user_id": user, "item_id": 100 * shelf + place, "timestamp": start + hours})


def main(folder: Path) -> None:
    events = bseq.read_events(made_up_log())
    # split="none" trains on everything; for figures use the default, leave-one-out, or "time"
    recipe = bseq.Recipe(
        encoder={"name": "causal", "max_length": 20},
        vectors={"dim": 16},
        split="none",
        training={"epochs": 20, "batch": {"users": 32}},
    )
    run = bseq.train(events, recipe, folder / "run", progress=False)
    print("published", bseq.publish(run, folder / "store"))

    retriever = bseq.Retriever.open(folder / "store")
    hits = retriever.retrieve([0, 1, 2], k=3, exclude="seen")
    print("\nNew items for users of the store:")
    print(hits.to_string(index=False))
    print("\nFor somebody who is not in the store, by items, oldest first:")
    print(retriever.retrieve_items([301, 302, 303], k=3).to_string(index=False))

    at = "2024-02-01T00:00:00+00:00"  # only events strictly before it count
    spec = bseq.FeatureSpec(names=("sim_max", "sim_last1", "hist_sim_mean"))
    table = bseq.ranking_features(hits, events, at, spec, model=retriever.model)
    table.to_parquet(folder / "ranking_features.parquet")
    print("\nRanking features:")
    columns = ["user_id", "item_id", *table.names]
    print(table.to_pandas()[columns].to_string(index=False, float_format="%.3f"))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
