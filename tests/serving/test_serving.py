"""A serving process: damaged versions, refresh, threads, forks, and packages that are missing here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from store_files import reseal

from bseq_plugin import MissingDependencyError, Retriever, Sequences, StoreError, UsageError
from bseq_plugin.indexes.faiss_gpu import FaissGpuIndex
from bseq_plugin.publishing.publish import publish_model
from bseq_plugin.store.store import Store


@pytest.fixture
def shop(tmp_path, make_model, make_histories):
    """(store, models, histories, names): two versions of models with different items."""
    store = Store(tmp_path / "store")
    models = [make_model(seed=seed) for seed in (1, 2)]
    histories = make_histories(models[0], [5, 12, 30])
    names = [publish_model(model, histories, store) for model in models]
    return store, models, histories, names


def answer(retriever):
    return retriever.retrieve([100, 101, 102], k=5)["item_id"].tolist()


def swap_two_vectors(folder, manifest):
    items = load_file(folder / "items.safetensors")
    items["item_table"] = items["item_table"].flip(0).contiguous()
    save_file(items, folder / "items.safetensors")


def other_encoder(folder, manifest):
    golden = manifest["golden"]
    golden["queries"] = (torch.tensor(golden["queries"]) + 0.5).tolist()


def other_ids(folder, manifest):
    ids = pq.read_table(folder / "item_ids.parquet")["item_id"].to_pylist()
    pq.write_table(pa.table({"item_id": ids[::-1]}), folder / "item_ids.parquet")


def no_golden(folder, manifest):
    del manifest["golden"]


def no_histories(folder, manifest):
    del manifest["files"]["sequences.parquet"]


def not_parquet(folder, manifest):
    (folder / "vocabulary.parquet").write_bytes(b"PAR1 nonsense PAR1")


def newer_recipe(folder, manifest):
    header = json.loads((folder / "recipe.json").read_text())
    header["recipe"]["of_tomorrow"] = 1
    (folder / "recipe.json").write_text(json.dumps(header))


def not_safetensors(folder, manifest):
    (folder / "encoder.safetensors").write_bytes(b"\xff" * 64)


def fewer_items(folder, manifest):
    items = load_file(folder / "items.safetensors")
    save_file({"item_table": items["item_table"][:-1].contiguous()}, folder / "items.safetensors")


FORGERIES = [
    swap_two_vectors, other_encoder, other_ids, no_golden, no_histories, not_parquet, newer_recipe, not_safetensors,
    fewer_items,
]  # fmt: skip


@pytest.mark.parametrize("change", FORGERIES)
def test_parts_that_do_not_fit_are_refused_though_all_checksums_are_right(shop, change):
    store, _, _, names = shop
    old = Retriever.open(store)
    store.point_to(names[0])
    wanted = answer(Retriever.open(store))
    store.point_to(names[1])
    reseal(store, names[1], change)
    with pytest.warns(UserWarning, match=f"SERVING VERSION {names[0]}"):
        fresh = Retriever.open(store)
    assert fresh.version == names[0]
    assert answer(fresh) == wanted
    before = answer(old)
    with pytest.raises(StoreError):
        old.refresh()
    assert old.version == names[1]
    assert answer(old) == before


def test_a_damaged_file_is_refused_before_it_is_parsed(shop, monkeypatch):
    store, _, _, names = shop
    for path in sorted((store.path / "versions" / names[1]).iterdir()):
        original = path.read_bytes()
        for place in np.linspace(0, len(original) - 1, 7).astype(int):
            damaged = bytearray(original)
            damaged[place] ^= 1
            path.write_bytes(damaged)
            with pytest.raises(StoreError):
                store.current()
        path.write_bytes(original[: len(original) // 2])
        with pytest.warns(UserWarning, match="SERVING VERSION"):
            assert Retriever.open(store).version == names[0]
        path.write_bytes(original)
    assert Retriever.open(store).version == names[1]


def test_no_intact_version_is_an_error(shop):
    store, _, _, names = shop
    for name in names:
        (store.path / "versions" / name / "items.safetensors").write_bytes(b"")
    with pytest.raises(StoreError, match="no other version"):
        Retriever.open(store)


def test_refresh_takes_the_new_version_and_rollback_the_old(shop):
    store, models, histories, names = shop
    retriever = Retriever.open(store)
    assert retriever.refresh() is False
    first = answer(retriever)
    third = publish_model(models[0], histories, store)
    assert retriever.version == names[1]
    assert retriever.refresh() is True
    assert retriever.version == third
    assert answer(retriever) != first
    store.point_to(names[1])
    assert retriever.refresh() is True
    assert answer(retriever) == first


def test_a_failed_refresh_keeps_the_old_version_and_a_later_one_works(shop):
    store, models, histories, names = shop
    retriever = Retriever.open(store)
    before = answer(retriever)
    third = publish_model(models[0], histories, store)
    path = store.path / "versions" / third / "items.safetensors"
    original = path.read_bytes()
    path.write_bytes(original[:-1])
    with pytest.raises(StoreError, match=f"{third}/items.safetensors has"):
        retriever.refresh()
    assert (retriever.version, answer(retriever)) == (names[1], before)
    path.write_bytes(original)
    assert retriever.refresh() is True


def test_an_answer_is_wholly_from_one_version_under_threads(shop):
    store, _, _, names = shop
    retriever = Retriever.open(store)
    wanted = []
    for name in names:
        store.point_to(name)
        retriever.refresh()
        wanted.append(answer(retriever))
    problems, n_answers, stop = [], [0], threading.Event()

    def ask():
        while not stop.is_set():
            if answer(retriever) not in wanted:
                problems.append("mixture")
            n_answers[0] += 1

    askers = [threading.Thread(target=ask) for _ in range(4)]
    for asker in askers:
        asker.start()
    for turn in range(12):
        store.point_to(names[turn % 2])
        retriever.refresh()
    stop.set()
    for asker in askers:
        asker.join()
    assert not problems
    assert n_answers[0] > 10


def test_the_counter_of_unknown_items_is_right_under_threads(shop):
    retriever = Retriever.open(shop[0])
    threads = [
        threading.Thread(target=lambda: [retriever.retrieve_items([5, 998, 999], k=1) for _ in range(10)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert retriever.n_unknown_items == 4 * 10 * 2


def test_use_after_a_fork_is_refused(shop):
    code = (
        "import os, sys\n"
        "from bseq_plugin import Retriever, StoreError\n"
        "retriever = Retriever.open(sys.argv[1])\n"
        "retriever.retrieve([100], k=3)\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    refused = 0\n"
        "    for use in (lambda: retriever.retrieve([1]), lambda: retriever.retrieve_items([5]), retriever.refresh):\n"
        "        try: use()\n"
        "        except StoreError as error: refused += 'Retriever.open' in str(error)\n"
        "    os._exit(0 if refused == 3 else 1)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(shop[0].path)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


def test_a_read_only_store_is_served(shop):
    store, _, _, _ = shop
    before = {p: p.stat().st_mtime_ns for p in store.path.rglob("*")}
    answer(Retriever.open(store.path))
    assert {p: p.stat().st_mtime_ns for p in store.path.rglob("*")} == before


def test_an_index_that_is_unknown_or_missing_is_an_error_if_asked_for(shop, monkeypatch):
    store = shop[0]
    with pytest.raises(UsageError, match="unknown index 'foo'"):
        Retriever.open(store, index="foo")
    with pytest.raises(MissingDependencyError, match="faiss_gpu"):
        Retriever.open(store, index="faiss_gpu")
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingDependencyError, match="pip install faiss-cpu"):
        Retriever.open(store, index="faiss_cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Retriever.open(store)  # exact needs no FAISS


def test_a_store_published_with_faiss_opens_without_it(shop, monkeypatch):
    store, models, histories, _ = shop
    publish_model(models[0], histories, store, index="faiss_cpu")
    wanted = answer(Retriever.open(store))
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.warns(UserWarning, match="index 'faiss_cpu' can't be used here.*using index 'exact'"):
        assert answer(Retriever.open(store)) == wanted


def test_the_gpu_is_used_where_there_is_one_and_its_failure_is_survived(shop, monkeypatch):
    store = shop[0]
    built = []

    def build(vectors_VD, options=None):
        built.append(vectors_VD.shape)
        raise UsageError("out of memory")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(FaissGpuIndex, "why_not", staticmethod(lambda: None))
    monkeypatch.setattr(FaissGpuIndex, "build", build)
    with pytest.warns(UserWarning, match="index 'faiss_gpu' can't be used here"):
        Retriever.open(store)
    assert built == [(40, 6)]


def test_an_index_file_that_is_not_in_the_manifest_is_not_read(shop):
    """It was not verified; the index is made again from the vectors, which were."""
    store, models, histories, _ = shop
    third = publish_model(models[0], histories, store, index="faiss_cpu")
    wanted = answer(Retriever.open(store))

    def poison(folder, manifest):
        del manifest["files"]["items.faiss"]
        (folder / "items.faiss").write_bytes(os.urandom(1000))

    reseal(store, third, poison)
    assert answer(Retriever.open(store)) == wanted


def test_an_index_of_other_vectors_is_refused(shop):
    store, models, histories, _ = shop
    other = publish_model(models[1], histories, store, index="faiss_cpu")
    third = publish_model(models[0], histories, store, index="faiss_cpu")
    data = (store.path / "versions" / other / "items.faiss").read_bytes()
    reseal(store, third, lambda folder, manifest: (folder / "items.faiss").write_bytes(data))
    with pytest.warns(UserWarning, match="golden queries"):
        assert Retriever.open(store).version == other


def test_no_file_is_a_pickle(shop):
    store, _, _, names = shop
    for path in (store.path / "versions" / names[1]).iterdir():
        assert path.read_bytes()[:2] not in (b"\x80\x02", b"\x80\x04", b"\x80\x05", b"PK")


def test_memory_of_an_unused_version_is_released(shop):
    import gc
    import weakref

    store, models, histories, _ = shop
    retriever = Retriever.open(store)
    answer(retriever)
    old = weakref.ref(retriever.model)
    publish_model(models[0], histories, store)
    retriever.refresh()
    gc.collect()
    assert old() is None


def test_an_unlisted_file_is_not_read(shop):
    """A file dropped into a version beside those of the manifest changes nothing."""
    store, _, _, names = shop
    wanted = answer(Retriever.open(store))
    (store.path / "versions" / names[1] / "items.faiss").write_bytes(os.urandom(100))
    assert answer(Retriever.open(store)) == wanted


def test_histories_of_the_store_are_those_published(shop):
    store, models, histories, _ = shop
    found = Retriever.open(store).histories
    for name in ("user_ids", "offsets", "items", "timestamps"):
        np.testing.assert_array_equal(getattr(found, name), getattr(histories, name))
    assert isinstance(found, Sequences)
    assert Retriever.open(store).model.vocabulary.n_items == models[1].vocabulary.n_items
