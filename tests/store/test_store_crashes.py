"""Publishing that is killed, fails at any step, or meets another publisher (faults.md 32-37)."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest

from bseq_plugin import StoreError
from bseq_plugin.files import Disk
from bseq_plugin.store.store import CURRENT, Store

# A publisher that goes on for ever; each version's files hold one number. It says when it has begun.
PUBLISHER = """
import sys
from pathlib import Path
from bseq_plugin.store.store import Store

def write(folder):
    for name in ("a.txt", "b.txt", "c.txt"):
        (folder / name).write_text(str(number) * 2000)

store = Store(sys.argv[1])
for number in range(10_000_000):
    store.publish(write, {"text": str(number)})
    if number == 0:
        print("begun", flush=True)
"""


class FailingDisk(Disk):
    """Fails the n-th operation; writes leave half of their bytes behind, as a full disk does."""

    def __init__(self, fail_at):
        self.n = 0
        self.fail_at = fail_at

    def _step(self):
        self.n += 1
        return self.n == self.fail_at

    def write(self, path, data):
        if self._step():
            super().write(path, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        super().write(path, data)

    def fsync(self, path):
        if self._step():
            raise OSError(errno.EIO, "Input/output error")
        super().fsync(path)

    def replace(self, source, target):
        if self._step():
            raise OSError(errno.EROFS, "Read-only file system")
        super().replace(source, target)


def served(store):
    version = store.open()
    texts = {version.file(name).read_text() for name in version.manifest["files"]}
    assert len(texts) == 1, "torn version"
    assert set(version.manifest["files"]) == {"a.txt", "b.txt"}
    return texts.pop()


@pytest.mark.parametrize("first", [True, False], ids=["first version", "later version"])
@pytest.mark.filterwarnings("error")
def test_a_failure_at_any_step_leaves_old_or_new(tmp_path, publish_text, first):
    fail_at, outcomes = 0, []
    while True:
        fail_at += 1
        path = tmp_path / str(fail_at)
        if not first:
            publish_text(Store(path), "old")
        disk = FailingDisk(fail_at)
        try:
            publish_text(Store(path, disk=disk), "new")
        except StoreError as error:
            outcomes.append(str(error))
        else:
            break
        reader = Store(path)
        if "visible" in outcomes[-1]:
            assert served(reader) == "new"
        elif first:
            with pytest.raises(StoreError):
                reader.open()
        else:
            assert served(reader) == "old"
            assert len(reader.versions()) == 1
        leftovers = [p for p in path.rglob("*") if p.name.startswith(".tmp-")]
        assert not leftovers
        publish_text(reader, "after")  # the next publisher is not hindered
        assert served(reader) == "after"
    assert disk.n == fail_at - 1  # every operation was made to fail once
    assert fail_at > 8
    assert sum("visible" in o for o in outcomes) == 1  # only the very last flush


def test_killing_a_publisher_at_any_moment_leaves_a_whole_version(tmp_path):
    path = tmp_path / "store"
    randomness = random.Random(0)
    seen = set()
    for _ in range(15):
        process = subprocess.Popen([sys.executable, "-c", PUBLISHER, str(path)], stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout.readline() == "begun\n"
            time.sleep(randomness.uniform(0, 0.02))
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
            process.stdout.close()
        version = Store(path).current()  # never falls back: CURRENT always names a whole version
        texts = {version.file(name).read_text() for name in ("a.txt", "b.txt", "c.txt")}
        assert texts == {version.manifest["text"] * 2000}
        seen.add(version.name)
    assert len(seen) == 15
    Store(path).publish(lambda folder: (folder / "a.txt").write_text("x"), {})
    assert not [p for p in path.rglob("*") if p.name.startswith(".tmp-")], "leftovers of the dead were not removed"


def test_a_publisher_killed_half_way_is_cleaned_up_by_the_next(tmp_path, publish_text):
    path = tmp_path / "store"
    publish_text(Store(path), "old")
    code = (
        "import os, signal, sys\n"
        "from bseq_plugin.store.store import Store\n"
        "def write(folder):\n"
        "    (folder / 'a.txt').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "Store(sys.argv[1]).publish(write, {})\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], timeout=240)
    assert done.returncode == -signal.SIGKILL
    assert [p for p in (path / "versions").iterdir() if p.name.startswith(".tmp-")]
    assert served(Store(path)) == "old"
    publish_text(Store(path), "new")  # takes over the dead publisher's lock
    assert served(Store(path)) == "new"
    assert not [p for p in path.rglob("*") if p.name.startswith(".tmp-")]


def test_of_two_publishers_one_loses(tmp_path, publish_text):
    store = Store(tmp_path / "store")
    inside, leave = threading.Event(), threading.Event()

    def slow(folder):
        (folder / "a.txt").write_text("slow")
        inside.set()
        leave.wait(30)

    first = threading.Thread(target=store.publish, args=(slow, {}))
    first.start()
    inside.wait(30)
    with pytest.raises(StoreError, match=rf"another publisher \(process {os.getpid()} on .*\) is at work"):
        publish_text(store, "loser")
    code = "import sys; from bseq_plugin.store.store import Store; Store(sys.argv[1]).publish(lambda f: None, {})"
    other = subprocess.run([sys.executable, "-c", code, str(store.path)], capture_output=True, text=True, timeout=240)
    assert "another publisher" in other.stderr
    leave.set()
    first.join()
    assert len(store.versions()) == 1
    assert publish_text(store, "next").startswith("v00000002-")


def test_readers_beside_a_publisher_never_see_a_mixture(tmp_path, publish_text):
    store = Store(tmp_path / "store")
    publish_text(store, "0")
    problems, n_reads, stop = [], [0], threading.Event()

    def read():
        while not stop.is_set():
            try:
                served(Store(store.path))
                n_reads[0] += 1
            except Exception as error:
                problems.append(error)
                return

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    for number in range(1, 25):
        publish_text(store, str(number))
    stop.set()
    for reader in readers:
        reader.join()
    assert not problems
    assert n_reads[0] > 20
    assert served(store) == "24"
    assert json.loads((store.path / CURRENT).read_text())["version"] == store.versions()[-1]
