"""Many readers during many swaps, and batches larger than memory should hold (docs/faults.md 36, 55)."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
import torch

from bseq_plugin import Retriever
from bseq_plugin.publishing.publish import publish_model
from bseq_plugin.store.store import Store

N_READERS = 8

READER = """
import json, sys, torch
from bseq_plugin import Retriever
torch.set_num_threads(1)
store, answers = sys.argv[1], {tuple(a) for a in json.loads(sys.argv[2])}
retriever, seen = Retriever.open(store), 0
print("ready", flush=True)
while True:
    retriever.refresh()
    answer = tuple(retriever.retrieve([100, 101], k=4)["item_id"])
    if answer not in answers:
        sys.exit(f"{retriever.version} gave {answer}")
    seen += 1
    if sys.stdin in __import__("select").select([sys.stdin], [], [], 0)[0]:
        print(seen)
        sys.exit(0)
"""


@pytest.fixture
def shop(tmp_path, make_model, make_histories):
    """(store, versions, the answer of each): models whose answers all differ."""
    store, names, answers = Store(tmp_path / "store"), [], []
    for seed in range(4):
        model = make_model(seed=seed)
        names.append(publish_model(model, make_histories(model, [5, 12]), store))
        answers.append(tuple(Retriever.open(store).retrieve([100, 101], k=4)["item_id"]))
    assert len(set(answers)) == 4
    return store, names, answers


def swapped_under_threads(store, names, answers, n_readers, n_swaps):
    """Answers given while the version changes; problems end up in the list."""
    retriever, problems, counts, stop = Retriever.open(store), [], [0] * n_readers, threading.Event()

    def ask(number):
        while not stop.is_set():
            try:
                if tuple(retriever.retrieve([100, 101], k=4)["item_id"]) not in answers:
                    problems.append("a mixture")
            except Exception as error:
                problems.append(error)
            counts[number] += 1

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(n_readers)]
    for thread in threads:
        thread.start()
    for turn in range(n_swaps):
        store.point_to(names[turn % len(names)])
        assert retriever.refresh() or turn == 0
    stop.set()
    for thread in threads:
        thread.join()
    return problems, counts


def test_threads_during_some_swaps_get_whole_answers(shop):
    problems, counts = swapped_under_threads(*shop, n_readers=4, n_swaps=8)
    assert not problems
    assert min(counts) > 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_eight_threads_during_a_hundred_swaps_get_whole_answers(shop):
    store, names, answers = shop
    store.point_to(names[-1])
    problems, counts = swapped_under_threads(store, names, answers, N_READERS, 100)
    assert not problems
    assert min(counts) > 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_eight_processes_during_a_hundred_swaps_get_whole_answers(shop):
    import json

    store, names, answers = shop
    command = [sys.executable, "-c", READER, str(store.path), json.dumps([[int(i) for i in a] for a in answers])]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    readers = [subprocess.Popen(command, **pipes) for _ in range(N_READERS)]
    try:
        assert [reader.stdout.readline() for reader in readers] == ["ready\n"] * N_READERS
        for turn in range(100):
            store.point_to(names[turn % len(names)])
        for reader in readers:
            said, errors = reader.communicate("stop\n", timeout=300)
            assert reader.returncode == 0, errors
            assert int(said) > 0
    finally:
        for reader in readers:
            reader.kill()
            reader.communicate()


LARGE_BATCH = """
import numpy as np, resource, torch
from bseq_plugin.indexes.exact import ExactIndex
from bseq_plugin.serving.hits import ExcludedPairs
from bseq_plugin.serving.search import search_items
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
vectors_VD = torch.randn(20_000, 8, generator=generator)
index = ExactIndex.build(vectors_VD)
nothing = np.empty(0, np.int64)
def peak(n_users):
    interests_BKD = torch.randn(n_users, 4, 8, generator=generator)
    hits = search_items(index, index, interests_BKD, 50, ExcludedPairs.of(nothing, nothing, n_users, 20_000))
    assert len(hits.rows_N) == 50 * n_users
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, sum(
        column.nbytes for column in (hits.users_N, hits.rows_N, hits.scores_N, hits.interests_N)) / 2**20
small, _ = peak(64)
large, answer = peak(8_000)
print(large - small, answer)
"""


@pytest.mark.slow
def test_a_huge_batch_of_several_interests_is_cut_into_searches(tmp_path):
    """8,000 users x 4 interests x 20,000 items are 2.4 GB of scores; never more than a bounded part is held."""
    done = subprocess.run([sys.executable, "-c", LARGE_BATCH], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    grown, answer = map(float, done.stdout.split())
    assert grown < 400 + 6 * answer
    assert torch.get_num_threads() >= 1
