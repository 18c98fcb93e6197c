"""The publish lock: the kernel's on one host, a lease between hosts (docs/faults.md 37)."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from bseq_plugin import StoreError
from bseq_plugin.store import lock as lock_module
from bseq_plugin.store.lock import RECORD_BYTES, publish_lock
from bseq_plugin.store.retention import collect_garbage
from bseq_plugin.store.store import LOCK, Store


def record(path, **changes):
    """The lock file as another host's publisher left or leaves it."""
    holder = {"process": 77, "host": "elsewhere", "token": "t" * 16, "until": time.time() + 60} | changes
    path.write_bytes(json.dumps(holder).encode().ljust(RECORD_BYTES))


@pytest.fixture
def path(tmp_path):
    return tmp_path / LOCK


def test_a_lease_of_another_host_is_waited_for_and_then_taken_over(path):
    record(path)
    wanted = r"another publisher \(process 77 on elsewhere\).*its lease runs out in \d+ s"
    with pytest.raises(StoreError, match=wanted), publish_lock(path):
        pass
    record(path, until=time.time() - 1)
    with publish_lock(path) as lease:
        lease.check()
        assert json.loads(path.read_bytes())["host"] == socket.gethostname()
    assert json.loads(path.read_bytes()) == {}


def test_on_one_host_the_kernel_knows_that_the_holder_is_dead(path):
    code = (
        "import os, sys, pathlib\n"
        "from bseq_plugin.store.lock import publish_lock\n"
        "held = publish_lock(pathlib.Path(sys.argv[1]))\n"
        "held.__enter__()\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code, path], timeout=240, check=False)
    assert json.loads(path.read_bytes())["until"] > time.time()
    with publish_lock(path) as lease:
        lease.check()


def test_without_locks_of_the_kernel_the_lease_decides(path, monkeypatch):
    def none(descriptor, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with publish_lock(path) as lease:
        lease.check()
        wanted = rf"another publisher \(process {os.getpid()} on .*its lease runs out"
        with pytest.raises(StoreError, match=wanted), publish_lock(path):
            pass
    with publish_lock(path) as lease:
        lease.check()


def test_a_lease_is_renewed_while_it_is_held(path):
    with publish_lock(path, lease_seconds=0.3) as lease:
        first = json.loads(path.read_bytes())["until"]
        deadline = time.time() + 20
        while json.loads(path.read_bytes().rstrip() or b"{}").get("until", first) == first:
            assert time.time() < deadline, "never renewed"
            time.sleep(0.02)
        lease.check()


@pytest.mark.parametrize("step", ["publish", "rollback"])
def test_a_publisher_that_lost_its_lease_changes_nothing(two_versions, publish_text, step, monkeypatch):
    """Frozen for longer than its lease, it wakes up after another host took over: the newer one's word counts."""
    store, old, new = two_versions
    before = (store.path / "CURRENT").read_bytes()

    def write(folder):
        (folder / "a.txt").write_text("late")
        record(store.path / LOCK)

    if step == "publish":
        with pytest.raises(StoreError, match=r"was taken over by process 77 on elsewhere.*publish again"):
            store.publish(write, {})
    else:
        real = store.verify
        monkeypatch.setattr(store, "verify", lambda name: (record(store.path / LOCK), real(name))[1])
        with pytest.raises(StoreError, match="was taken over"):
            store.point_to(old)
    assert (store.path / "CURRENT").read_bytes() == before
    assert store.versions() == [old, new]
    assert json.loads((store.path / LOCK).read_bytes())["host"] == "elsewhere"  # theirs is left alone


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"garbage",
        b"[]",
        b"{}",
        b'{"process": 1}',
        b"\xff" * 600,
        b"process 5 on x\n",
        b'{"process": 1, "host": "x", "token": "", "until": "soon"}',
    ],
)
def test_a_lock_file_that_makes_no_sense_holds_nobody_off(path, text):
    path.write_bytes(text)
    with publish_lock(path) as lease:
        lease.check()


def test_threads_take_turns(path):
    inside, order = threading.Lock(), []

    def work(number):
        while True:
            try:
                with publish_lock(path) as lease:
                    assert inside.acquire(blocking=False), "two at once"
                    lease.check()
                    order.append(number)
                    inside.release()
                    return
            except StoreError:
                time.sleep(0.005)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(order) == list(range(6))


def test_the_collector_waits_for_a_lease_too(two_versions):
    store, old, new = two_versions
    record(store.path / LOCK)
    with pytest.raises(StoreError, match="elsewhere"):
        collect_garbage(store, keep=1, grace_seconds=0)
    assert store.versions() == [old, new]


def test_a_lease_that_can_not_be_written_is_an_error(path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(lock_module, "_write", full)
    with pytest.raises(StoreError, match="No space left on device; nothing was published"), publish_lock(path):
        pass
    monkeypatch.undo()
    with publish_lock(path) as lease:
        lease.check()
    assert Store(path.parent).versions() == []
