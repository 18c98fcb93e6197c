"""Rollback and garbage collection: what is read is never removed (faults.md 39), in this process and in others."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading

import pytest

from bseq_plugin import StoreError, UsageError
from bseq_plugin.store.lock import publish_lock
from bseq_plugin.store.retention import collect_garbage, in_use
from bseq_plugin.store.store import LOCK, Store


@pytest.fixture
def five(tmp_path, publish_text):
    """A store with versions "0" to "4", and their names."""
    store = Store(tmp_path / "store")
    return store, [publish_text(store, str(number)) for number in range(5)]


def test_the_newest_and_the_current_stay(five):
    store, names = five
    store.point_to(names[0])
    done = collect_garbage(store, keep=2, grace_seconds=0)
    assert done.removed == (names[1], names[2])
    assert done.kept == {names[0]: "current", names[3]: "among the newest", names[4]: "among the newest"}
    assert store.versions() == [names[0], names[3], names[4]]
    assert store.current().name == names[0]
    assert not [path for path in store.path.rglob("*") if path.name.startswith(".tmp-")]
    assert collect_garbage(store, keep=2, grace_seconds=0).removed == ()


def test_a_young_version_stays(five):
    store, names = five
    assert collect_garbage(store, keep=1).removed == ()
    os.utime(store.folder(names[1]), (0, 0))
    assert collect_garbage(store, keep=1).removed == (names[1],)


def test_a_version_in_use_stays_until_it_is_let_go(five):
    store, names = five
    held = store.verify(names[0])
    assert in_use(store.folder(names[0]))
    assert names[0] not in collect_garbage(store, keep=1, grace_seconds=0).removed
    assert held.file("a.txt").read_text() == "0"
    del held
    gc.collect()
    assert not in_use(store.folder(names[0]))
    assert collect_garbage(store, keep=1, grace_seconds=0).removed == (names[0],)


def test_a_version_in_use_by_another_process_stays_until_that_is_killed(five):
    store, names = five
    code = (
        "import sys\n"
        "from bseq_plugin.store.store import Store\n"
        "held = Store(sys.argv[1]).verify(sys.argv[2])\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    arguments = [sys.executable, "-c", code, str(store.path), names[0]]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        try:
            assert reader.stdout.readline() == "held\n"
            assert names[0] not in collect_garbage(store, keep=1, grace_seconds=0).removed
        finally:
            reader.kill()
    assert collect_garbage(store, keep=1, grace_seconds=0).removed == (names[0],)


def test_readers_beside_publishing_and_collecting_always_get_a_whole_version(tmp_path, publish_text):
    store = Store(tmp_path / "store")
    publish_text(store, "0")
    problems, stop = [], threading.Event()

    def read():
        while not stop.is_set():
            try:
                version = Store(store.path).current()
                texts = {version.file(name).read_text() for name in ("a.txt", "b.txt")} | {version.manifest["text"]}
            except Exception as error:
                problems.append(error)
                return
            if len(texts) != 1:
                problems.append(texts)

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    for number in range(1, 25):
        publish_text(store, str(number))
        collect_garbage(store, keep=2, grace_seconds=0)
    stop.set()
    for reader in readers:
        reader.join()
    assert not problems
    gc.collect()
    collect_garbage(store, keep=2, grace_seconds=0)
    assert len(store.versions()) == 2


@pytest.mark.parametrize(("keep", "grace"), [(0, 0), (-1, 0), (1.5, 0), (True, 0), (1, -1), (1, float("nan"))])
def test_wrong_settings_remove_nothing(five, keep, grace):
    store, names = five
    with pytest.raises(UsageError, match="keep|grace"):
        collect_garbage(store, keep, grace)
    assert store.versions() == names


def test_nothing_is_removed_beside_a_publisher_or_without_a_pointer(five, tmp_path):
    store, names = five
    with publish_lock(store.path / LOCK), pytest.raises(StoreError, match="another publisher"):
        collect_garbage(store, keep=1, grace_seconds=0)
    (store.path / "CURRENT").write_text("torn")
    with pytest.raises(StoreError):
        collect_garbage(store, keep=1, grace_seconds=0)
    assert store.versions() == names
    with pytest.raises(StoreError, match="nothing is published"):
        collect_garbage(Store(tmp_path / "empty"))
    assert not (tmp_path / "empty").exists()


def test_rollback_goes_to_the_newest_intact_version_before_the_current(five):
    store, names = five
    (store.folder(names[3]) / "a.txt").write_text("x")
    assert store.rollback() == names[2]
    assert store.current().name == names[2]
    store.point_to(names[0])
    with pytest.raises(StoreError, match="no intact version before"):
        store.rollback()
    assert store.current().name == names[0]
