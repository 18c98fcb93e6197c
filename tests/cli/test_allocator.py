"""Memory that is freed stays with the process, where it is ours."""

import json
import os
import platform
import subprocess
import sys

import pytest

from bseq_plugin.cli.allocator import keep_freed_memory

# faults of twenty rounds in which 40 blocks of 2 MB are written to and freed again
PROBE = """
import json, resource, sys
import numpy as np
from bseq_plugin.cli.allocator import keep_freed_memory
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
