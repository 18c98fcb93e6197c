"""A made-up log of any size: Zipf popularity, tastes that differ by group of users and drift by the week.

    make bench-synthetic ARGS="events.parquet --events 100000000 --users 1000000 --items 1000000 --seed 0"

Chunk by chunk, in the order of time, so that its own memory is small; the same arguments give the same file.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

CHUNK = 2_000_000
START_US, WEEK_US, N_WEEKS = 1_600_000_000_000_000, 7 * 86_400_000_000, 26
N_TASTES = 64  # groups of users with a popularity order of their own
OWN_TASTE = 0.7  # share of events that follow the group's order; the rest follows everybody's
DRIFT = 7  # places in the catalogue by which a group's taste moves in a week
STRIDE = 2_654_435_761  # spreads ranks over the catalogue: popular items do not stand together


def chunks(
    n_events: int, n_users: int, n_items: int, seed: int, cover: bool = False
) -> Iterator[dict[str, np.ndarray]]:
    """user_id, item_id, timestamp (int64, microseconds), ascending by time."""
    for number, start in enumerate(range(0, n_events, CHUNK)):
        n = min(CHUNK, n_events - start)
        rng = np.random.default_rng([seed, number])
        users = rng.integers(0, n_users, n)
        # log-uniform ranks: Zipf with exponent 1, without a table of the catalogue
        ranks = np.exp(rng.random(n) * np.log(n_items)).astype(np.int64)
        span = N_WEEKS * WEEK_US / max(n_events, 1)
        times = START_US + ((start + np.sort(rng.random(n)) * n) * span).astype(np.int64)
        week = (times - START_US) // WEEK_US
        taste = users % N_TASTES
        shift = np.where(rng.random(n) < OWN_TASTE, (1 + taste) * (n_items // N_TASTES) + week * DRIFT, 0)
        items = (ranks * STRIDE + shift) % n_items
        if cover:  # every item occurs: the catalogue is as large as it is said to be
            first = np.arange(start, start + n)
            items = np.where(first < n_items, first, items)
        yield {"user_id": users, "item_id": items, "timestamp": times}


def write_log(path: Path, n_events: int, n_users: int, n_items: int, seed: int, cover: bool = False) -> None:
    """The log as one Parquet file."""
    schema = pa.schema([("user_id", pa.int64()), ("item_id", pa.int64()), ("timestamp", pa.timestamp("us", "UTC"))])
    with pq.ParquetWriter(path, schema) as writer:
        for chunk in chunks(n_events, n_users, n_items, seed, cover):
            columns = [pa.array(chunk["user_id"]), pa.array(chunk["item_id"])]
            writer.write_table(pa.table([*columns, pa.array(chunk["timestamp"]).cast(schema[2].type)], schema=schema))


def main() -> None:
    """The command line above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cover", action="store_true", help="the first events are one of each item")
    chosen = parser.parse_args()
    write_log(chosen.out, chosen.events, chosen.users, chosen.items, chosen.seed, chosen.cover)


if __name__ == "__main__":
    main()
