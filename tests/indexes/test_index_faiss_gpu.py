"""The GPU backend against a fake that enforces the real limits of classic GPU FAISS; the same suite on a real GPU."""

from __future__ import annotations

import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import numpy as np
import pytest
import torch

from bseq_plugin import MissingDependencyError, UsageError
from bseq_plugin.indexes.exact import ExactIndex
from bseq_plugin.indexes.faiss_gpu import MAX_K, FaissGpuIndex
from bseq_plugin.testing.indexes import IndexTests, vectors


class TestFaissGpuOnTheFake(IndexTests):
    index = FaissGpuIndex

    @pytest.fixture(autouse=True)
    def _fake(self, use_fake):
        use_fake()


class TestIvfOnTheFake(TestFaissGpuOnTheFake):
    options: ClassVar = {"kind": "ivf_flat", "n_lists": 4, "nprobe": 3}
    exact = False


class TestIvfBuiltOnTheFake(TestFaissGpuOnTheFake):
    options: ClassVar = {"kind": "ivf_flat", "n_lists": 4, "nprobe": 3, "build_on": "gpu"}
    exact = False


class TestCagraOnTheFake(IndexTests):
    index = FaissGpuIndex
    options: ClassVar = {"kind": "cagra"}
    exact = False

    @pytest.fixture(autouse=True)
    def _fake(self, use_fake):
        use_fake(cagra=True)


@pytest.mark.gpu
class TestFaissGpu(IndexTests):
    index = FaissGpuIndex


@pytest.mark.gpu
class TestIvfOnAGpu(IndexTests):
    index = FaissGpuIndex
    options: ClassVar = {"kind": "ivf_flat", "n_lists": 4, "nprobe": 3}
    exact = False


@pytest.mark.gpu
@pytest.mark.skipif(FaissGpuIndex.why_not("cagra") is not None, reason="this FAISS has no CAGRA")
class TestCagraOnAGpu(IndexTests):
    index = FaissGpuIndex
    options: ClassVar = {"kind": "cagra"}
    exact = False


def test_cagra_needs_a_build_that_has_it(use_fake):
    use_fake()
    with pytest.raises(MissingDependencyError, match=r"no CAGRA.*faiss-gpu-cuvs"):
        FaissGpuIndex.build(vectors(300, 8), {"kind": "cagra"})


def test_capabilities_say_what_the_options_give(use_fake):
    use_fake()
    vectors_VD = vectors(300, 8)
    assert FaissGpuIndex.build(vectors_VD).capabilities.exact
    ivf = FaissGpuIndex.build(vectors_VD, {"kind": "ivf_flat"}).capabilities
    assert (ivf.exact, ivf.device, ivf.max_k, ivf.masks) == (False, "cuda", MAX_K, False)


def test_an_ivf_built_on_the_cpu_opens_without_a_gpu(use_fake, tmp_path):
    """The saved file is a plain CPU index."""
    import faiss

    use_fake()
    vectors_VD, queries_BD = vectors(300, 8), vectors(4, 8, seed=1)
    built = FaissGpuIndex.build(vectors_VD, {"kind": "ivf_flat", "n_lists": 4, "nprobe": 4})
    built.save(tmp_path / "items.index")
    on_cpu = faiss.read_index(str(tmp_path / "items.index"))
    on_cpu.nprobe = 4
    np.testing.assert_array_equal(on_cpu.search(queries_BD.numpy(), 10)[1], built.search(queries_BD, 10)[1].numpy())


def test_an_index_over_the_cap_is_refused_before_the_gpu_is_touched(use_fake):
    gpu = use_fake()
    with pytest.raises(UsageError, match="over memory_mb = 1"):
        FaissGpuIndex.build(vectors(70_000, 8), {"memory_mb": 1})
    FaissGpuIndex.build(vectors(70_000, 8), {"memory_mb": 2, "float16": True})
    assert gpu.n_resources == 1


@pytest.mark.gpu
def test_a_real_gpu_finds_what_the_cpu_finds():
    vectors_VD, queries_BD = vectors(20_000, 64), vectors(100, 64, seed=1)
    scores_Bk, rows_Bk = FaissGpuIndex.build(vectors_VD).search(queries_BD, 100)
    exact_scores_Bk, exact_rows_Bk = ExactIndex.build(vectors_VD).search(queries_BD, 100)
    torch.testing.assert_close(scores_Bk, exact_scores_Bk, rtol=1e-4, atol=1e-4)
    assert (rows_Bk == exact_rows_Bk).float().mean() > 0.99


def test_k_beyond_the_limit_is_refused_by_us(use_fake):
    use_fake()
    index = FaissGpuIndex.build(vectors(3_000, 4))
    scores_Bk, _ = index.search(vectors(2, 4, seed=1), MAX_K)
    assert scores_Bk.shape == (2, MAX_K)
    with pytest.raises(UsageError, match="at most 2048"):
        index.search(vectors(2, 4, seed=1), MAX_K + 1)


def test_all_threads_share_one_worker_and_one_set_of_resources(use_fake):
    gpu = use_fake()
    vectors_VD, queries_BD = vectors(500, 8), vectors(20, 8, seed=1)
    indexes = [FaissGpuIndex.build(vectors_VD) for _ in range(3)]
    wanted = ExactIndex.build(vectors_VD).search(queries_BD, 10)[1]
    with ThreadPoolExecutor(8) as threads:
        futures = [threads.submit(indexes[i % 3].search, queries_BD, 10) for i in range(100)]
        assert all(torch.equal(f.result()[1], wanted) for f in futures)
    assert gpu.n_resources == 1


def test_the_scratch_memory_is_capped(use_fake):
    use_fake()
    index = FaissGpuIndex.build(vectors(10, 4), {"temp_memory_mb": 7})
    assert index._index._resources.temp_memory == 7 * 2**20


def test_a_failing_gpu_is_reported_once_and_replaced_by_the_cpu(use_fake):
    gpu = use_fake()
    vectors_VD, queries_BD = vectors(300, 8), vectors(5, 8, seed=1)
    index = FaissGpuIndex.build(vectors_VD)
    wanted = index.search(queries_BD, 10)
    gpu.out_of_memory = True
    with pytest.warns(UserWarning, match="GPU search failed"):
        got = index.search(queries_BD, 10)
    assert torch.equal(got[1], wanted[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        index.search(queries_BD, 10)


def test_an_index_larger_than_the_gpu_is_a_clear_error(use_fake):
    use_fake(memory=1_000)
    with pytest.raises(UsageError, match=r"can't be put on GPU 0.*out of memory.*float16"):
        FaissGpuIndex.build(vectors(300, 8))


def test_a_gpu_that_is_not_there_is_named(use_fake):
    use_fake(n_gpus=2)
    with pytest.raises(UsageError, match="device = 2; this machine has 2 GPUs"):
        FaissGpuIndex.build(vectors(5, 4), {"device": 2})


def test_the_cpu_wheel_is_told_apart_from_a_gpu_build():
    with pytest.raises(MissingDependencyError, match=r"CPU build.*bseq-plugin\[gpu\]"):
        FaissGpuIndex.build(vectors(5, 4))


def test_a_gpu_build_without_a_gpu_is_told(use_fake):
    use_fake(n_gpus=0)
    with pytest.raises(MissingDependencyError, match="sees no GPU"):
        FaissGpuIndex.build(vectors(5, 4))


def test_without_faiss_the_message_names_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingDependencyError, match="pip install"):
        FaissGpuIndex.build(vectors(5, 4))
    assert "FAISS" in FaissGpuIndex.why_not()


def test_saves_no_file(use_fake, tmp_path):
    use_fake()
    FaissGpuIndex.build(vectors(5, 4)).save(tmp_path / "items.index")
    assert not list(tmp_path.iterdir())
