"""Memory that is freed stays with a process of ours, and large imports go without Python's garbage collector."""

import gc
import json
import os
import platform
import subprocess
import sys
import weakref

import pytest

from bseq_plugin.cli.common import keep_freed_memory, loading

# faults of twenty rounds in which 40 blocks of 2 MB are written to and freed again
PROBE = """
import json, resource, sys
import numpy as np
from bseq_plugin.cli.common import keep_freed_memory
done = keep_freed_memory() if sys.argv[1] == "keep" else None
def round():
    blocks = [np.ones(1 << 18) for _ in range(40)]
round()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    round()
print(json.dumps([done, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before]))
"""


def probe(how):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    done = subprocess.run(
        [sys.executable, "-c", PROBE, how], capture_output=True, text=True, check=True, env=environment
    )
    return json.loads(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_freed_blocks_are_used_again():
    """The same work takes pages from the kernel again and again, or hardly ever."""
    done, kept = probe("keep")
    _, given_back = probe("leave")
    assert done is True
    assert kept < 0.1 * given_back


def test_what_the_environment_says_stands(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert keep_freed_memory() is False


@pytest.fixture
def as_before():
    """Objects that are frozen here are thawed, and the collector runs."""
    yield
    gc.unfreeze()
    gc.enable()


class Node:
    """May be weakly referenced."""


def cycle():
    """A weak reference to garbage that only the collector finds."""
    node = Node()
    node.itself = node
    return weakref.ref(node)


@pytest.mark.usefixtures("as_before")
def test_the_collector_rests_inside_and_works_afterwards():
    with loading():
        assert not gc.isenabled()
    assert gc.isenabled()
    found = cycle()
    gc.collect()
    assert found() is None


@pytest.mark.usefixtures("as_before")
def test_what_was_there_is_left_out_of_later_collections():
    before = gc.get_freeze_count()
    with loading():
        kept = [[] for _ in range(1000)]
    assert gc.get_freeze_count() >= before + len(kept)


@pytest.mark.usefixtures("as_before")
def test_a_failed_import_leaves_the_collector_on():
    with pytest.raises(ModuleNotFoundError), loading():
        import no_such_module_at_all  # noqa: F401
    assert gc.isenabled()


@pytest.mark.usefixtures("as_before")
def test_who_had_it_off_has_it_off():
    gc.disable()
    with loading():
        pass
    assert not gc.isenabled()
