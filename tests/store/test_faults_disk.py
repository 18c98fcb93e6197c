"""Publishing while the disk fails or the publisher is killed: old or new, never something else (docs/faults.md)."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bseq_plugin.store.store import Store

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def small_run(tmp_path_factory, make_model, make_histories):
    """A run directory of a small model, as far as publishing reads it."""
    model = make_model(n_items=24, dim=4)
    folder = tmp_path_factory.mktemp("small") / "run"
    (folder / "model").mkdir(parents=True)
    model.save(folder / "model")
    make_histories(model, [5, 1, 9]).save(folder / "sequences.parquet", model.vocabulary)
    return folder


@pytest.fixture(scope="session")
def shim(tmp_path_factory):
    """``fail_nth.c`` compiled; a C compiler is needed to build fbgemm's users anyhow (README, "Install")."""
    target = tmp_path_factory.mktemp("shim") / "fail_nth.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", target, HERE / "fail_nth.c", "-ldl"], check=True)
    return target


@pytest.fixture
def publisher(tmp_path, small_run):
    """A function that runs ``publisher.py`` and gives what it found."""

    def run(how, *numbers, preload=None):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **({"LD_PRELOAD": str(preload)} if preload else {})}
        command = [sys.executable, HERE / "publisher.py", how, small_run, tmp_path / "store", *map(str, numbers)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1200, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run


def test_some_operations_of_all_libraries_fail(publisher, shim):
    found = publisher("fail", 3, 9, preload=shim)
    assert found["operations"] > 40
    assert found["happened"]["refused"] > 3


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_operation_of_all_libraries_fails_in_turn(publisher, shim):
    found = publisher("fail", 1, 1, preload=shim)
    happened = found["happened"]
    assert sum(happened.values()) >= found["operations"] > 100  # each one was made to fail once
    assert happened["visible"] == 1  # only the very last flush
    # without harm: making two folders that are there, and saying at the end that nobody holds the lock
    # (two operations; two more if a slow machine renewed its lease meanwhile)
    assert happened.get("published", 0) <= 6


def test_files_that_can_not_grow(publisher):
    assert publisher("limit", 0, 401)["happened"]["refused"] > 5


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_files_that_can_not_grow_beyond_any_size(publisher):
    assert publisher("limit", 0, 17)["happened"]["refused"] > 100


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_publisher_killed_at_200_random_moments(publisher):
    found = publisher("kill", 200, 0)
    assert found["kills"] == 200
    assert 20 < found["changed"] < 180  # some were killed before, some after they were through


SMALL_PUBLISHER = """
import sys
from bseq_plugin.store.store import Store

store = Store(sys.argv[1])
print("begun", flush=True)
while True:
    number = len(store.versions())
    store.publish(lambda folder: [(folder / n).write_text(str(number) * 999) for n in "abc"], {"text": str(number)})
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_small_publisher_killed_at_200_random_moments(tmp_path, publish_text):
    """The store alone, where the moments of rename and pointer are a larger share of the time."""
    store, randomness, longest = Store(tmp_path / "store"), random.Random(1), 0.01
    name = publish_text(store, "0")
    seen = {name}
    for _ in range(200):
        process = subprocess.Popen(
            [sys.executable, "-c", SMALL_PUBLISHER, store.path], stdout=subprocess.PIPE, text=True
        )
        try:
            assert process.stdout.readline() == "begun\n"
            time.sleep(randomness.uniform(0, longest))
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
            process.stdout.close()
        version = store.current()
        texts = {version.file(name).read_text() for name in version.manifest["files"]}
        assert len(texts) == 1
        longest *= 0.95 if version.name != name else 1.05  # about half are killed before they are through
        name = version.name
        seen.add(name)
    assert 20 < len(seen) < 190


@pytest.mark.parametrize("what", ["unreadable", "unwritable", "missing"])
def test_a_store_that_can_not_be_used_says_so(tmp_path, publish_text, what):
    """As a user without rights: the tests may run as root, whom no permission stops."""
    path = tmp_path / "store"
    publish_text(Store(path), "old")
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid() and folder.is_relative_to("/tmp") and folder != Path("/tmp"):
            folder.chmod(0o755)
    if what == "missing":
        path = tmp_path / "nowhere"
    elif what == "unreadable":
        path.chmod(0)
    code = (
        "import fcntl, os, sys\n"  # before the rights are gone, with which the interpreter itself may be read
        "from bseq_plugin.store.store import Store\n"
        "from bseq_plugin import StoreError\n"
        "if os.getuid() == 0: os.setuid(65534)\n"
        "store = Store(sys.argv[1])\n"
        "try: print(store.current().name)\n"
        "except StoreError as error: print('E', error)\n"
        "try: print(store.publish(lambda folder: (folder / 'a').write_text('x'), {}))\n"
        "except StoreError as error: print('E', error)\n"
    )
    if what != "unreadable" and os.getuid() != 0:
        path.chmod(0o555) if path.exists() else path.parent.chmod(0o555)
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, timeout=240, check=False)
    path.chmod(0o755) if path.exists() else tmp_path.chmod(0o755)
    assert done.returncode == 0, done.stderr
    read, write = done.stdout.splitlines()
    if what == "unwritable":
        assert read.startswith("v00000001-")
    else:
        assert read.startswith("E ")
    assert write.startswith("E ")
    assert str(path) in write
    assert "permission" in write or "choose another folder" in write
