"""Make sequences of a log that is larger than one machine with Ray Data, in the format that `bseq train` reads.

    pip install "ray[data]" pandas pyarrow                  # an environment without bseq and torch will do
    python examples/sequences_with_ray.py 'logs/*.parquet' sequences --partitions 64
    bseq sequences sequences --seal                         # counts the items, and sees that everything is there
    bseq train sequences --out runs/today

The log is Parquet with user_id, item_id and timestamp, or any columns named by --columns; further columns are left out.
Row groups are read by whoever is free, and every user's events meet in one task by a hash of the user. A task holds one
partition, so take as many partitions as make one fit into a worker's memory. Without an address (--address) Ray starts
on this machine.

The order of equal times is that of the log: files by name, then rows.
"""

from __future__ import annotations

import argparse
import glob
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import ray

ROWS_A_FILE = 1 << 40  # places of events: file by file
USERS_A_GROUP = 1_000  # what training reads at a time


def read_group(where: dict[str, Any], columns: list[str], n_parts: int) -> pa.Table:
    """A row group of the log: user, item, time in microseconds, the place in the log, the partition."""
    file = pq.ParquetFile(where["path"])
    first = sum(file.metadata.row_group(group).num_rows for group in range(where["group"]))
    table = file.read_row_group(where["group"], columns=columns).select(columns)
    table = table.rename_columns(["user_id", "item_id", "timestamp"])
    for name in table.column_names:
        if table[name].null_count:
            raise ValueError(f"{where['path']}: {name} has {table[name].null_count} missing values; leave them out")
    time = table["timestamp"]
    if not pa.types.is_timestamp(time.type):
        raise ValueError(f"{where['path']}: timestamp is {time.type}; write timestamps, not numbers")
    microseconds = time.cast(pa.timestamp("us", time.type.tz)).cast(pa.int64())
    place = where["file"] * ROWS_A_FILE + first + np.arange(len(table))
    part = (pd.util.hash_array(table["user_id"].to_numpy()) % np.uint64(n_parts)).astype(np.int64)
    table = table.set_column(2, "timestamp", microseconds)
    return table.append_column("place", pa.array(place)).append_column("part", pa.array(part))


def write_part(events: pa.Table, out: str) -> pa.Table:
    """One partition: a row a user, its events oldest first, as part-NNNNN.parquet; what was written is told."""
    part = events["part"][0].as_py()
    events = events.sort_by([("user_id", "ascending"), ("timestamp", "ascending"), ("place", "ascending")])
    users = events["user_id"].combine_chunks()
    starts = np.flatnonzero(np.concatenate([[True], users[1:].to_numpy(False) != users[:-1].to_numpy(False)]))
    offsets = pa.array(np.append(starts, len(users)), pa.int64())
    lists = {
        name: pa.LargeListArray.from_arrays(offsets, events[column].combine_chunks())
        for name, column in (("item_ids", "item_id"), ("timestamps", "timestamp"))
    }
    path = Path(out) / f"part-{part:05d}.parquet"
    aside = path.with_name(f".{path.name}")  # a task may be tried again: its file is there as a whole, or not
    pq.write_table(pa.table({"user_id": users.take(pa.array(starts)), **lists}), aside, row_group_size=USERS_A_GROUP)
    aside.rename(path)
    return pa.table({"part": [part], "users": [len(starts)], "events": [len(users)]})


def main() -> None:
    """The command line above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", help="Parquet files, also a glob")
    parser.add_argument("out", type=Path, help="a folder that every worker sees; made if it is not there")
    parser.add_argument("--partitions", type=int, default=32)
    parser.add_argument("--columns", default="user_id,item_id,timestamp", help="user, item and time of the log")
    parser.add_argument("--address", help="of a Ray cluster")
    parser.add_argument("--cpus", type=int, help="of this machine, without an address; default: all")
    given = parser.parse_args()
    paths, columns = sorted(glob.glob(given.log)), given.columns.split(",")
    if not paths or len(columns) != 3 or given.partitions < 1:
        parser.error("give a log that is there, three columns and one partition or more")
    if given.out.exists() and any(given.out.iterdir()):
        parser.error(f"{given.out} is not empty")
    given.out.mkdir(parents=True, exist_ok=True)
    where = [
        {"path": str(Path(path).resolve()), "file": number, "group": group}
        for number, path in enumerate(paths)
        for group in range(pq.ParquetFile(path).metadata.num_row_groups)
    ]
    ray.init(address=given.address, num_cpus=None if given.address else given.cpus, include_dashboard=False)
    settings = {"columns": columns, "n_parts": given.partitions}

    def read(batch: dict[str, Any]) -> pa.Table:
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        return pa.concat_tables([read_group(row, **settings) for row in rows])

    events = ray.data.from_items(where).map_batches(read, batch_size=1)
    out = str(given.out.resolve())
    parts = events.groupby("part", num_partitions=given.partitions).map_groups(
        lambda group: write_part(group, out), batch_format="pyarrow"
    )
    told = parts.to_pandas()
    print(f"{told.events.sum():,} events of {told.users.sum():,} users in {len(told)} partitions: {given.out}")


if __name__ == "__main__":
    main()
