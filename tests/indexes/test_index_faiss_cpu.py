"""FAISS on CPU: the suite for exact and approximate factories, damaged files, refused settings."""

from __future__ import annotations

import subprocess
import sys
from typing import ClassVar

import pytest
import torch

from bseq_plugin import MissingDependencyError, StoreError, UsageError
from bseq_plugin.indexes.exact import ExactIndex
from bseq_plugin.indexes.faiss_cpu import FaissCpuIndex, sized_factory
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


class TestFaissIvfKind(IndexTests):
    index = FaissCpuIndex
    options: ClassVar = {"factory": "ivf_flat", "nprobe": 8}
    exact = False


class TestFaissIvfPq(IndexTests):
    index = FaissCpuIndex
    options: ClassVar = {"factory": "ivf_pq", "nprobe": 12}
    exact = False


class TestFaissHnswKind(IndexTests):
    index = FaissCpuIndex
    options: ClassVar = {"factory": "hnsw", "ef_search": 64}
    exact = False


class TestFaissOwnRefinement(IndexTests):
    index = FaissCpuIndex
    options: ClassVar = {"factory": "IVF4,PQ8x4fs,RFlat", "nprobe": 4, "refine": 10}
    exact = False
    test_any_shape = None  # PQ8 needs a width that 8 divides


def test_only_the_flat_factory_says_it_is_exact():
    vectors_VD = vectors(500, 8)
    exact = {
        f: FaissCpuIndex.build(vectors_VD, {"factory": f}).capabilities.exact for f in ("Flat", "ivf_flat", "hnsw")
    }
    assert exact == {"Flat": True, "ivf_flat": False, "hnsw": False}


@pytest.mark.parametrize(
    ("factory", "n", "dim", "sized"),
    [
        ("ivf_flat", 1_000_000, 64, "IVF4096,Flat"),
        ("ivf_flat", 10, 64, "IVF1,Flat"),
        ("ivf_pq", 100_000, 64, "IVF1024,PQ32x4fs"),
        ("ivf_pq", 100_000, 7, "IVF1024,PQ7x4fs"),
        ("hnsw", 5, 7, "HNSW32"),
        ("SQ8", 5, 7, "SQ8"),
    ],
)
def test_kinds_are_sized_for_the_catalogue(factory, n, dim, sized):
    assert sized_factory(factory, n, dim) == sized


def test_refinement_by_the_vectors_finds_what_codes_alone_miss():
    vectors_VD, queries_BD = vectors(3_000, 16), vectors(50, 16, seed=1)
    wanted_Bk = ExactIndex.build(vectors_VD).search(queries_BD, 10)[1]

    def recall(refine):
        options = {"factory": "ivf_pq", "nprobe": 64, "refine": refine}
        rows_Bk = FaissCpuIndex.build(vectors_VD, options).search(queries_BD, 10)[1]
        return float((wanted_Bk[:, :, None] == rows_Bk[:, None, :]).any(2).float().mean())

    assert recall(1) < 0.9
    assert recall(20) > 0.97


@pytest.mark.parametrize("factory", ["Flat", "ivf_flat", "ivf_pq", "hnsw"])
def test_the_same_vectors_give_the_same_bytes(tmp_path, factory):
    files = []
    for turn in range(2):
        FaissCpuIndex.build(vectors(3_000, 8), {"factory": factory}).save(tmp_path / str(turn))
        files.append((tmp_path / str(turn)).read_bytes())
    assert files[0] == files[1]


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
    "options",
    [
        {"nprobe": 2},
        {"refine": 2},
        {"factory": "ivf_flat", "refine": 2},
        {"factory": "HNSW16", "nprobe": 2},
        {"factory": "IVF4,Flat", "ef_search": 9},
    ],
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
        "from bseq_plugin import UsageError\n"
        "import bseq_plugin.indexes.faiss_gpu\n"
        "if 'faiss' in sys.modules: sys.exit('faiss was imported too early')\n"
        "index = FaissCpuIndex.build(torch.ones(5, 4))\n"
        "for queries, k in [(torch.ones(1, 3), 1), (torch.ones(1, 4), 0), (torch.ones(1, 4), 6)]:\n"
        "    try: index.search(queries, k)\n"
        "    except UsageError: continue\n"
        "    sys.exit('not refused')\n"
    )
    done = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
