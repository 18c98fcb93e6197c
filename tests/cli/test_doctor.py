"""What ``bseq doctor`` finds in a process and in a store (docs/faults.md 35, 54)."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from bseq_plugin.doctor.diagnosis import openmp_finding
from bseq_plugin.store.store import Store


def test_two_openmp_libraries_are_told():
    torchs, faisss = "/site/torch/lib/libgomp.so.1", "/site/faiss_cpu.libs/libgomp-e985bcbb.so.1.0.0"
    others = ["/site/pyarrow/_compute.so", "/lib/libm.so.6", "", "/site/libcompute.so", "[heap]"]
    both = openmp_finding([torchs, faisss, *others])
    assert both.state == "note"
    assert torchs in both.found
    assert faisss in both.found
    assert "OMP_NUM_THREADS" in both.remedy
    assert openmp_finding([torchs, *others]).state == "ok"
    assert openmp_finding(["/lib/libiomp5.so", "/lib/libomp.so"]).state == "note"
    assert openmp_finding(others).found == "none is loaded"


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="this system has no /proc")
def test_the_libraries_of_this_environment_are_named(bseq):
    found = [f for f in json.loads(bseq("doctor", "--json", "--quick")[1]) if f["what"] == "OpenMP"]
    assert len(found) == 1
    assert "omp" in found[0]["found"]
    assert "torch" in found[0]["found"]


def test_a_store_is_checked_too(bseq, tiny_store, tmp_path):
    def of_store(path):
        code, out, _ = bseq("doctor", "--store", path, "--json", "--quick")
        found = [finding for finding in json.loads(out) if finding["what"] == "store"]
        return code, found

    code, [finding] = of_store(tiny_store)
    assert finding["state"] == "ok"
    assert Store(tiny_store).current_name() in finding["found"]
    code, [finding] = of_store(tmp_path / "nowhere")
    assert (code, finding["state"]) == (1, "bad")
    assert "nothing is published" in finding["found"]
    copy = tmp_path / "copy"
    shutil.copytree(tiny_store, copy)
    damaged = Store(copy).current().folder / "items.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    code, [finding] = of_store(copy)
    assert (code, finding["state"]) == (1, "bad")
    assert "items.safetensors" in finding["found"]
    assert "rollback" in finding["remedy"]
