"""FAISS on CPU: the suite for exact and approximate factories, damaged files, refused settings."""

from __future__ import annotations

import subprocess
import sys
from typing import ClassVar

import pytest
import torch

from bseq_plugin.errors import MissingDependencyError, StoreError, UsageError
from bseq_plugin.indexes.exact import ExactIndex
from bseq_plugin.indexes.faiss_cpu import FaissCpuIndex
from bseq_plugin.testing.indexes import IndexTests, vectors


class TestFaissFlat(IndexTests):
    index = FaissCpuIndex


class TestFaissHnsw(IndexTests):
    index = FaissCpuIndex
    options: ClassVar = {"factory": "HNSW16", "ef_search": 64}
    exact = False


class TestFaissIvf(IndexTests):
    index = FaissCpuIndex
    options: ClassVar = {"factory": "IVF4,Flat", "nprobe": 3}
    exact = False


def test_the_same_rows_as_the_exact_index():
    vectors_VD, queries_BD = vectors(2_000, 24), vectors(64, 24, seed=1)
    scores, rows = FaissCpuIndex.build(vectors_VD).search(queries_BD, 50)
    exact_scores, exact_rows = ExactIndex.build(vectors_VD).search(queries_BD, 50)
    assert torch.equal(rows, exact_rows)
    torch.testing.assert_close(scores, exact_scores, rtol=1e-5, atol=1e-5)


def test_scores_of_a_compressing_index_are_inner_products():
    vectors_VD, queries_BD = vectors(500, 16), vectors(8, 16, seed=1)
    scores_Bk, rows_Bk = FaissCpuIndex.build(vectors_VD, {"factory": "SQ8"}).search(queries_BD, 10)
    torch.testing.assert_close(scores_Bk, torch.einsum("bd,bkd->bk", queries_BD, vectors_VD[rows_Bk]))


def test_hits_an_ivf_index_does_not_reach_are_minus_one_with_score_minus_infinity():
    vectors_VD = vectors(500, 8)
    scores_Bk, rows_Bk = FaissCpuIndex.build(vectors_VD, {"factory": "IVF16,Flat", "nprobe": 1}).search(
        vectors(3, 8), 500
    )
    assert bool((rows_Bk == -1).any())
    assert torch.equal(rows_Bk == -1, scores_Bk == -torch.inf)


@pytest.mark.parametrize("factory", ["Foo", "IVF4096,Flat", "IDMap,Flat", "IVF4,PQ7", ""])
def test_a_factory_faiss_refuses_is_a_usage_error(factory):
    with pytest.raises(UsageError, match="factory"):
        FaissCpuIndex.build(vectors(100, 16), {"factory": factory})


@pytest.mark.parametrize(
    "options", [{"nprobe": 2}, {"factory": "HNSW16", "nprobe": 2}, {"factory": "IVF4,Flat", "ef_search": 9}]
)
def test_a_search_option_that_does_not_apply_is_refused(options):
    with pytest.raises(UsageError, match="does not apply"):
        FaissCpuIndex.build(vectors(200, 8), options)


@pytest.mark.parametrize("damage", ["empty", "truncated", "magic", "missing", "folder"])
def test_an_unreadable_file_is_a_store_error(tmp_path, damage):
    path = tmp_path / "items.faiss"
    FaissCpuIndex.build(vectors(50, 8)).save(path)
    data = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        path.write_bytes({"empty": b"", "truncated": data[:-1], "magic": b"XXXX" + data[4:]}[damage])
    with pytest.raises(StoreError):
        FaissCpuIndex.load(path, vectors(50, 8))


def test_a_flipped_width_in_the_header_is_refused(tmp_path):
    path = tmp_path / "items.faiss"
    FaissCpuIndex.build(vectors(50, 8), {"factory": "HNSW16"}).save(path)
    data = bytearray(path.read_bytes())
    data[4] ^= 0x40  # the width of the outermost index: FAISS itself loads this without a word
    path.write_bytes(bytes(data))
    with pytest.raises(StoreError):
        FaissCpuIndex.load(path, vectors(50, 8))


def test_a_metric_other_than_the_inner_product_is_refused(tmp_path):
    import faiss

    l2 = faiss.IndexFlatL2(8)
    l2.add(vectors(50, 8).numpy())
    faiss.write_index(l2, str(tmp_path / "items.faiss"))
    with pytest.raises(StoreError, match="metric"):
        FaissCpuIndex.load(tmp_path / "items.faiss", vectors(50, 8))


def test_the_byte_limit_is_put_back(tmp_path):
    import faiss

    before = faiss.get_deserialization_vector_byte_limit()
    FaissCpuIndex.build(vectors(50, 8)).save(tmp_path / "items.faiss")
    FaissCpuIndex.load(tmp_path / "items.faiss", vectors(50, 8))
    assert faiss.get_deserialization_vector_byte_limit() == before


def test_a_full_disk_is_a_store_error(tmp_path):
    with pytest.raises(StoreError):
        FaissCpuIndex.build(vectors(50, 8)).save(tmp_path / "no such folder" / "items.faiss")


def test_without_faiss_the_message_names_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingDependencyError, match="pip install faiss-cpu"):
        FaissCpuIndex.build(vectors(5, 4))


def test_checks_hold_without_asserts_and_importing_needs_no_faiss():
    code = (
        "import sys, torch\n"
        "from bseq_plugin.indexes.faiss_cpu import FaissCpuIndex\n"
        "from bseq_plugin.errors import UsageError\n"
        "import bseq_plugin.indexes.faiss_gpu\n"
        "if 'faiss' in sys.modules: sys.exit('faiss was imported too early')\n"
        "index = FaissCpuIndex.build(torch.ones(5, 4))\n"
        "for queries, k in [(torch.ones(1, 3), 1), (torch.ones(1, 4), 0), (torch.ones(1, 4), 6)]:\n"
        "    try: index.search(queries, k)\n"
        "    except UsageError: continue\n"
        "    sys.exit('not refused')\n"
    )
    done = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
