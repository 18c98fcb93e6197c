"""Retrieval from a million items: our layer beside the raw index it asks, and opening the store beside reading it.

    make bench-retrieval                                             # 1,000,000 x 64, ivf_flat; about ten minutes
    make bench-retrieval ARGS="--items 100000 --index hnsw"

Made-up data: item vectors in clusters of Zipf sizes with log-normal lengths; a user's interest is the mean of some
items of one or two clusters, and the history is 50 items of these clusters. The index looks as far as recall@100 >=
0.99 takes against exact search. Then, in the same run and alternating, the same index is asked raw (FAISS alone, numpy
in and out) and through our layer (checks, seen items left out, merging, item ids). Writes
benchmarks/results/retrieval.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import harness
from bseq_plugin import InterestModel, Recipe, Sequences, Vocabulary
from bseq_plugin.indexes.exact import ExactIndex
from bseq_plugin.indexes.faiss_cpu import FaissCpuIndex, import_faiss
from bseq_plugin.model.encoder import SequenceInterestEncoder
from bseq_plugin.publishing.measure import recall
from bseq_plugin.publishing.publish import publish_model
from bseq_plugin.serving.hits import ExcludedPairs
from bseq_plugin.serving.retriever import Retriever
from bseq_plugin.serving.search import search_items
from bseq_plugin.store.store import Store

K, SEEN, TARGET = 100, 50, 0.99


@dataclass(frozen=True)
class Catalogue:
    """V items in clusters: vectors float32 [V, D]; ``order`` lists rows cluster by cluster, from ``starts`` on."""

    vectors_VD: np.ndarray
    order: np.ndarray
    starts: np.ndarray

    @classmethod
    def make(cls, n_items: int, dim: int, n_clusters: int, rng: np.random.Generator) -> Catalogue:
        """Cluster sizes fall like 1 / rank, lengths are log-normal with a deviation of 0.2."""
        shares = 1.0 / np.arange(1, n_clusters + 1)
        labels = rng.choice(n_clusters, n_items, p=shares / shares.sum())
        centres = rng.standard_normal((n_clusters, dim), dtype=np.float32)
        vectors = centres[labels] + 0.6 * rng.standard_normal((n_items, dim), dtype=np.float32)
        vectors *= rng.lognormal(0.0, 0.2, (n_items, 1)).astype(np.float32) / np.sqrt(dim)
        starts = np.concatenate([[0], np.cumsum(np.bincount(labels, minlength=n_clusters))])
        return cls(vectors, np.argsort(labels, kind="stable"), starts)

    def users(self, n_users: int, rng: np.random.Generator) -> tuple[Tensor, np.ndarray]:
        """Interests float32 [B, 1, D] and histories int64 [B, SEEN] (rows): users like what many like."""
        own = self.order[rng.integers(0, len(self.order), (n_users, 2))]  # two items, of popular clusters mostly
        labels = np.empty(len(self.order), np.int64)
        labels[self.order] = np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))
        chosen = labels[own][np.arange(n_users)[:, None], rng.integers(0, 2, (n_users, SEEN))]
        sizes = np.diff(self.starts)[chosen]
        rows = self.order[self.starts[chosen] + (rng.random(chosen.shape) * sizes).astype(np.int64)]
        interests = self.vectors_VD[rows[:, :5]].mean(1) + 0.02 * rng.standard_normal(
            (n_users, self.vectors_VD.shape[1]), dtype=np.float32
        )
        return torch.from_numpy(interests.astype(np.float32))[:, None], rows


def model_of(catalogue: Catalogue) -> InterestModel:
    """A model whose item vectors are the catalogue's."""
    n_items, dim = catalogue.vectors_VD.shape
    recipe = Recipe(encoder="mean", vectors={"dim": dim}, events={"features": ()})
    vocabulary = Vocabulary(np.arange(n_items) * 7 + 1, np.ones(n_items, np.int64))
    state = SequenceInterestEncoder(recipe, n_items, 0).state_dict()
    name = next(name for name in state if name.endswith("item.weight") or state[name].shape == (n_items + 1, dim))
    state[name] = torch.cat([torch.zeros(1, dim), torch.from_numpy(catalogue.vectors_VD)])
    return InterestModel.from_state(recipe, vocabulary, state, None, None)


def tuned(index: FaissCpuIndex, kind: str, queries_BD: Tensor, true_Bk: Tensor) -> tuple[str, int, float]:
    """The least search effort (of powers of two) that reaches the target, and the recall it has."""
    name = "efSearch" if kind == "hnsw" else "nprobe"
    for effort in (2**power for power in range(1, 13)):
        import_faiss().ParameterSpace().set_index_parameter(index._index, name, effort)
        found = recall(index.search(queries_BD, K)[1], true_Bk)
        print(f"  {name} {effort:<5} recall@{K} {found:.4f}")
        if found >= TARGET:
            return name, effort, found
    raise SystemExit(f"{kind} does not reach recall@{K} {TARGET}")


def alternating(
    calls: dict[str, Callable[[int], Any]], n_calls: int, rounds: int
) -> dict[str, tuple[list[float], list[float]]]:
    """(wall, processor) seconds of each call. The programs take turns call by call, so that a slow moment hits all of
    them, and never ask the same as the one before, so that none finds the other's lists in the cache.
    """
    taken: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in calls}
    for call in calls.values():
        call(0)
    for number in range(rounds * n_calls):
        for place, (name, call) in enumerate(calls.items()):
            wall, processor = time.perf_counter(), time.process_time()
            call((number + place * (n_calls // len(calls))) % n_calls)
            taken[name][0].append(time.perf_counter() - wall)
            taken[name][1].append(time.process_time() - processor)
    return taken


def throughput(
    index: FaissCpuIndex,
    oracle: ExactIndex,
    ids_V: np.ndarray,
    users: tuple[Tensor, np.ndarray],
    batch: int,
    rounds: int,
) -> dict[str, dict[str, float]]:
    """Queries a second and ms a call (p50, p95, p99, and median processor time, which other programs on the machine
    disturb less) of the raw index and of ours, without and with seen items left out.
    """
    interests_BKD, seen = users
    n_items, nothing = len(ids_V), np.empty(0, np.int64)
    n_calls = len(interests_BKD) // batch

    def part(number: int) -> slice:
        return slice(number * batch, (number + 1) * batch)

    def raw(number: int) -> Any:
        return index._index.search(interests_BKD[part(number), 0].numpy(), K)

    def ours(number: int) -> Any:
        hits = search_items(
            index, oracle, interests_BKD[part(number)], K, ExcludedPairs.of(nothing, nothing, batch, n_items)
        )
        return hits, ids_V[hits.rows_N], hits.ranks()

    def ours_unseen(number: int) -> Any:
        rows = seen[part(number)]
        excluded = ExcludedPairs.of(np.repeat(np.arange(batch), SEEN), rows.ravel(), batch, n_items)
        hits = search_items(index, oracle, interests_BKD[part(number)], K, excluded)
        return hits, ids_V[hits.rows_N], hits.ranks()

    taken = alternating({"raw": raw, "ours": ours, "ours, seen left out": ours_unseen}, n_calls, rounds)
    figures = {}
    for name, (wall, processor) in taken.items():
        p50, p95, p99 = (1e3 * float(np.quantile(wall, q)) for q in (0.5, 0.95, 0.99))
        figures[name] = {
            "queries_a_second": batch / statistics.median(wall),
            "p50": p50,
            "p95": p95,
            "p99": p99,
            "processor_ms": 1e3 * statistics.median(processor),
        }
    return figures


def forget(folder: Path) -> None:
    """Drop the files from the page cache."""
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def read_all(folder: Path) -> int:
    """Read every byte, a block at a time."""
    buffer, total = bytearray(1 << 22), 0
    for path in folder.iterdir():
        with path.open("rb", buffering=0) as file:
            while n := file.readinto(buffer):
                total += n
    return total


def opening(store: Path, rounds: int) -> dict[str, float]:
    """Median seconds of reading all bytes of the version and of ``Retriever.open``, with cold and with warm cache."""
    folder = Store(store).current().folder
    seconds: dict[str, list[float]] = {}
    for _ in range(rounds):
        for state in ("cold", "warm"):
            for what, call in (("read", lambda: read_all(folder)), ("open", lambda: Retriever.open(store))):
                if state == "cold":
                    forget(folder)
                else:
                    read_all(folder)
                started = time.perf_counter()
                call()
                seconds.setdefault(f"{what}_{state}", []).append(time.perf_counter() - started)
    figures = {name: statistics.median(values) for name, values in seconds.items()}
    return {**figures, "megabytes": read_all(folder) / 1e6}


def claims(
    batches: dict[int, dict[str, dict[str, float]]], reached: float, opened: dict[str, float]
) -> list[harness.Claim]:
    """Return what the aims ask, as this run has it."""
    made = [harness.at_least(f"recall@{K} against exact search", reached, TARGET)]
    for batch, aim in ((256, 0.9), (1, 0.8)):
        for name in ("ours", "ours, seen left out"):
            ratio = batches[batch][name]["queries_a_second"] / batches[batch]["raw"]["queries_a_second"]
            made.append(harness.at_least(f"{name} / raw, batch {batch}", ratio, aim))
    for state in ("cold", "warm"):
        ratio = opened[f"open_{state}"] / opened[f"read_{state}"]
        # from the cache a read is a copy in memory, which no checksum can keep up with: shown, without an aim
        made.append(harness.at_most(f"opening / reading, {state} cache", ratio, 1.5 if state == "cold" else None))
    return made


def stored(chosen: argparse.Namespace, catalogue: Catalogue, seen: np.ndarray, folder: Path) -> Path:
    """Return the store that was named, or one in ``folder``; it is published if it is not there."""
    store: Path = chosen.store or folder / "store"
    if not store.exists():
        started = time.perf_counter()
        histories = Sequences(np.arange(len(seen)), np.arange(len(seen) + 1) * SEEN, seen.ravel() + 1)
        publish_model(model_of(catalogue), histories, store, index="faiss_cpu", index_options={"factory": chosen.index})
        print(f"published {chosen.items:,} x {chosen.dim}, {chosen.index}, in {time.perf_counter() - started:.0f} s")
    return store


def main() -> None:
    """Make, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--clusters", type=int, default=2_000)
    parser.add_argument("--index", default="ivf_flat", choices=["ivf_flat", "hnsw", "Flat"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--store", type=Path, help="keep the store here, and use it if it is there")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    import_faiss().omp_set_num_threads(chosen.threads)
    rng = np.random.default_rng(chosen.seed)
    catalogue = Catalogue.make(chosen.items, chosen.dim, chosen.clusters, rng)
    interests_BKD, seen = catalogue.users(2_048, rng)
    with tempfile.TemporaryDirectory() as folder:
        store = stored(chosen, catalogue, seen, Path(folder))
        opened = opening(store, chosen.rounds)
        served = Retriever.open(store)._served
        index, oracle, ids_V = served.index, served.oracle, served.model.vocabulary.item_ids
        if not isinstance(index, FaissCpuIndex):
            raise SystemExit(f"the store serves index {index.name}, not faiss_cpu")
        sample_BD = interests_BKD[:512, 0]
        name, effort, found = (
            ("exact", 0, 1.0)
            if chosen.index == "Flat"
            else tuned(index, chosen.index, sample_BD, oracle.search(sample_BD, K)[1])
        )
        batches = {
            256: throughput(index, oracle, ids_V, (interests_BKD, seen), 256, chosen.rounds),
            1: throughput(index, oracle, ids_V, (interests_BKD[:300], seen[:300]), 1, chosen.rounds),
        }
    print(f"{'':<24}{'queries/s':>12}{'p50 ms':>10}{'p95':>10}{'p99':>10}{'CPU ms':>10}")
    for batch, figures in batches.items():
        for program, row in figures.items():
            cells = "".join(f"{row[column]:>10.2f}" for column in ("p50", "p95", "p99", "processor_ms"))
            print(f"{f'{program}, {batch}':<24}{row['queries_a_second']:>12,.0f}{cells}")
    print("  ".join(f"{what} {value:,.3f}" for what, value in opened.items()))
    held = claims(batches, found, opened)
    harness.show(held, 34)
    figures = {"search": {name: effort, "recall": found}, "batches": batches, "opening": opened}
    harness.write("retrieval", figures, held, threads=chosen.threads)


if __name__ == "__main__":
    main()
