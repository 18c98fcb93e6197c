"""Catalogues and logs larger than memory: `make bench-scale`, or one part of it.

    make bench-scale ARGS="sequences --events 100000000"        # events -> partitions, against DuckDB alone
    make bench-scale ARGS="reading"                             # 10 million events of Parquet and of CSV
    make bench-scale ARGS="catalogue --items 10000000"          # train on 2 ranks, checkpoint, publish, retrieve
    make bench-scale ARGS="users --users 400000"                # publish their histories, and a tenth of them

Each part writes its figures to benchmarks/results/scale-PART.json, with the claims of docs/scale.md, computed from what
was measured. The log is that of `make bench-synthetic`. The files (up to 25 GB) are in --work, and are removed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.harness import ROOT

MEASURED = """
import json, resource, sys, time
started = time.perf_counter()
try:
{code}
finally:
    used = resource.getrusage(resource.RUSAGE_SELF)
    figures = {{"seconds": time.perf_counter() - started, "cpu_seconds": used.ru_utime + used.ru_stime}}
    print("MEASURED", json.dumps({{**figures, "peak_mb": used.ru_maxrss / 1024}}), flush=True)
"""
DUCKDB = """
    import duckdb
    connection = duckdb.connect(config={{"temp_directory": {spill!r}, "threads": {threads}}})
    connection.execute("SET enable_progress_bar = false")
    connection.execute("COPY (SELECT user_id, list(item_id ORDER BY timestamp) AS items, list(timestamp ORDER BY "
        "timestamp) AS times FROM {read}({source!r}) GROUP BY user_id) TO {out!r} (FORMAT parquet)")
"""
SEQUENCES = """
    from bseq_plugin.readers.build_sequences import build_sequences
    build_sequences({source!r}, {out!r}, memory_mb={memory_mb}, partitions={partitions}, threads={threads}{how})
"""
TO_CSV = """
    import duckdb
    duckdb.sql("COPY (SELECT user_id, item_id, epoch_us(timestamp) AS timestamp FROM read_parquet({source!r})) "
        "TO {out!r} (FORMAT csv, HEADER)")
"""
RANK = """
    import os
    import torch
    torch.set_num_threads(1)
    from pathlib import Path
    from torch import distributed as dist
    from bseq_plugin import Recipe, train
    from bseq_plugin.data.partitions import PartitionedSequences
    dist.init_process_group("gloo", init_method="file://" + {store!r}, rank={rank}, world_size={size})
    log = PartitionedSequences.open(Path({source!r}))
    train(log, Recipe(**{recipe!r}), {out!r}, progress=False, sharding="row_wise", matmul="float32")
    dist.destroy_process_group()
"""
PUBLISH = """
    import bseq_plugin as bseq
    bseq.publish({run!r}, {store!r}, index="faiss_cpu", index_options={options!r})
"""
PUBLISH_ALL = """
    import bseq_plugin as bseq
    bseq.publish({run!r}, {store!r}, index="exact")
"""
RETRIEVE = """
    import bseq_plugin as bseq
    retriever = bseq.Retriever.open({store!r})
    opened = time.perf_counter() - started
    users = retriever.histories.user_ids[:100]
    hits = retriever.retrieve(users, k=20)
    assert len(hits) == 2000, len(hits)
    print("OPENED", opened, "ANSWERED", time.perf_counter() - started - opened)
"""

Measured = tuple[dict[str, Any], list[harness.Claim]]  # figures of a part, and what is claimed of them


def measured(code: str, **values: Any) -> dict[str, float]:
    """Seconds, CPU seconds and peak MB of a process of its own that runs ``code``."""
    return finish(begin(code, **values))


def begin(code: str, **values: Any) -> subprocess.Popen[str]:
    """Start such a process."""
    script = MEASURED.format(code=code.format(**values))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment)


def finish(process: subprocess.Popen[str]) -> dict[str, float]:
    """Wait for it; its figures."""
    text, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"a part of the benchmark failed: {text[-2000:]}")
    found: dict[str, float] = json.loads(text.rpartition("MEASURED")[2])
    for line in text.splitlines():
        if line.startswith("OPENED"):
            _, opened, _, answered = line.split()
            found |= {"open_seconds": float(opened), "answer_100_users_seconds": float(answered)}
    return found


def make_log(path: Path, chosen: argparse.Namespace, cover: bool = False) -> None:
    """The made-up log."""
    sizes = ["--events", chosen.events, "--users", chosen.users, "--items", chosen.items, "--seed", chosen.seed]
    command = [sys.executable, "-m", "benchmarks.scale.synthetic", str(path.resolve()), *map(str, sizes)]
    subprocess.run([*command, *(["--cover"] if cover else [])], check=True, cwd=ROOT)


def sequences(chosen: argparse.Namespace, work: Path) -> Measured:
    """Events to partitions under 2 GB, against what DuckDB alone takes with all the memory there is."""
    source = work / "events.parquet"
    make_log(source, chosen)
    ours, alone = _against_duckdb(chosen, source, work)
    claims = [
        harness.at_most("peak memory, MB", ours["peak_mb"], chosen.memory_mb),
        harness.at_most("seconds / DuckDB alone, sort and group", ours["seconds"] / alone["seconds"], 2.0),
    ]
    return {"ours": ours, "duckdb_alone": alone, "events_per_second": chosen.events / ours["seconds"]}, claims


def _against_duckdb(chosen: argparse.Namespace, source: Path, work: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Figures of ``build_sequences``, and of DuckDB that groups the same file by user and knows nothing else."""
    how, text = {"source": str(source), "threads": chosen.threads}, source.suffix == ".csv"
    out, extra = str(work / f"parts-{source.suffix[1:]}"), ", timestamp_unit='us'" if text else ""
    ours = measured(
        SEQUENCES, out=out, memory_mb=chosen.memory_mb, partitions=chosen.partitions, how=extra, **how
    )  # fmt: skip
    read = "read_csv" if text else "read_parquet"
    alone = measured(DUCKDB, out=str(work / "alone.parquet"), spill=str(work / "spill"), read=read, **how)
    return ours, alone


def reading(chosen: argparse.Namespace, work: Path) -> Measured:
    """The same events from Parquet and from CSV."""
    figures: dict[str, Any] = {}
    claims = []
    source = work / "events.parquet"
    make_log(source, chosen)
    measured(TO_CSV, source=str(source), out=str(work / "events.csv"))
    for path in (source, work / "events.csv"):
        kind = path.suffix[1:]
        figures[kind], figures[f"{kind}_duckdb_alone"] = _against_duckdb(chosen, path, work)
        ratio = figures[kind]["seconds"] / figures[f"{kind}_duckdb_alone"]["seconds"]
        claims.append(harness.at_most(f"{kind}: seconds / DuckDB alone", ratio, 1.5))
        claims.append(harness.at_most(f"{kind}: peak memory, MB", figures[kind]["peak_mb"], chosen.memory_mb))
    return figures, claims


def catalogue(chosen: argparse.Namespace, work: Path) -> Measured:
    """Train a large catalogue row-wise on several ranks, checkpoint, publish, retrieve."""
    source, parts = work / "events.parquet", work / "parts"
    make_log(source, chosen, cover=True)
    how = {"source": str(source), "memory_mb": chosen.memory_mb, "partitions": chosen.partitions}
    figures: dict[str, Any] = {"sequences": measured(SEQUENCES, out=str(parts), threads=chosen.threads, how="", **how)}
    source.unlink()
    recipe = {
        "encoder": {"n_blocks": 1, "n_heads": 2},
        "events": {"features": []},
        "negatives": {"kind": "uniform", "n": 1024},
        "split": "none",
        "training": {"epochs": 1, "batch": {"users": 256}},
    }
    ranks = [
        begin(RANK, store=str(work / "group"), rank=rank, size=chosen.ranks, source=str(parts), recipe=recipe,
              out=str(work / "run"))
        for rank in range(chosen.ranks)
    ]  # fmt: skip
    figures["ranks"] = [finish(process) for process in ranks]
    line = json.loads((work / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    figures["epoch"] = line
    size = sum(file.stat().st_size for file in (work / "run" / "checkpoints").rglob("*") if file.is_file())
    figures["checkpoint_mb"] = size / 2**20
    options = {"factory": chosen.factory, "nprobe": 32, "refine": 8}
    figures["publish"] = measured(PUBLISH, run=str(work / "run"), store=str(work / "store"), options=options)
    shutil.rmtree(work / "run")
    figures["retrieve"] = measured(RETRIEVE, store=str(work / "store"))
    shard_mb = (chosen.items + 1) / chosen.ranks * (64 + 1) * 4 / 2**20
    constant_mb = CONSTANT_MB + BYTES_PER_ITEM * chosen.items / 2**20
    figures |= {"shard_and_optimizer_mb": shard_mb, "constant_mb": constant_mb}
    peak = max(rank["peak_mb"] for rank in figures["ranks"])
    ratio = peak / (shard_mb + constant_mb)
    return figures, [harness.at_most("peak MB of a rank / (shard + optimizer + constant)", ratio, 1.3)]


def users(chosen: argparse.Namespace, work: Path) -> Measured:
    """Train and publish a log and a tenth of it: what publishing needs does not grow with the users."""
    figures: dict[str, Any] = {}
    for name, divisor in (("tenth", 10), ("whole", 1)):
        folder = work / name
        folder.mkdir()
        sizes = {"events": chosen.events // divisor, "users": chosen.users // divisor}
        make_log(folder / "events.parquet", argparse.Namespace(**{**vars(chosen), **sizes}))
        how = {"memory_mb": chosen.memory_mb, "partitions": chosen.partitions, "threads": chosen.threads}
        measured(SEQUENCES, source=str(folder / "events.parquet"), out=str(folder / "parts"), how="", **how)
        recipe = {
            "encoder": {"name": "mean", "max_length": 20},
            "vectors": {"dim": 32},
            "events": {"features": []},
            "negatives": {"kind": "uniform", "n": 256},
            "split": "none",
            "training": {"epochs": 1, "batch": {"users": 1024}},
        }
        group = {"store": str(folder / "group"), "rank": 0, "size": 1}
        trained = measured(RANK, source=str(folder / "parts"), out=str(folder / "run"), recipe=recipe, **group)
        published = measured(PUBLISH_ALL, run=str(folder / "run"), store=str(folder / "store"))
        figures[name] = {**sizes, "train": trained, "publish": published}
        shutil.rmtree(folder)
    peak = {name: figures[name]["publish"]["peak_mb"] for name in figures}
    return figures, [
        harness.at_most("peak MB of publishing ten times the users / of a tenth", peak["whole"] / peak["tenth"], 1.2)
    ]


# Stated, not fitted: torch, torchrec and the batches of a rank; ids and counts of the items, each twice while they are
# brought together.
CONSTANT_MB, BYTES_PER_ITEM = 700, 32


PARTS = {"sequences": sequences, "reading": reading, "catalogue": catalogue, "users": users}
SIZES = {
    "sequences": (100_000_000, 1_000_000, 1_000_000),
    "reading": (10_000_000, 500_000, 200_000),
    "catalogue": (20_000_000, 20_000, 10_000_000),
    "users": (20_000_000, 400_000, 100_000),
}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=[*PARTS, "all"], default="all")
    for name in ("events", "users", "items"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--partitions", type=int, default=32)
    parser.add_argument("--memory-mb", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--factory", default="IVF1024,PQ32x4fs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="a folder with room; default: a temporary one")
    given = parser.parse_args()
    failed = False
    for part in PARTS if given.part == "all" else [given.part]:
        chosen = argparse.Namespace(**vars(given))
        for name, value in zip(("events", "users", "items"), SIZES[part], strict=True):
            setattr(chosen, name, getattr(given, name) or value)
        started = time.perf_counter()
        with tempfile.TemporaryDirectory(dir=given.work) as folder:
            measured_of_part, claims = PARTS[part](chosen, Path(folder))
        figures = {"events": chosen.events, "users": chosen.users, "items": chosen.items, **measured_of_part}
        print(json.dumps(figures, indent=1))
        harness.show(claims, 55, "10.2f")
        print(f"{time.perf_counter() - started:.0f} s in all")
        failed |= not all(one["holds"] for one in claims)
        harness.write(f"scale-{part}", figures, claims, threads=chosen.threads)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
