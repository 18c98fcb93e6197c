"""Shards of an index, searched and merged as one: the suite, and the answers of the index that is not cut."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bseq_plugin import StoreError, UsageError
from bseq_plugin.indexes.faiss_cpu import FaissCpuIndex
from bseq_plugin.indexes.faiss_shards import FaissShardsIndex
from bseq_plugin.testing.indexes import IndexTests, vectors


class TestFaissShards(IndexTests):
    index = FaissShardsIndex
    options: ClassVar = {"shards": 3}
    test_any_shape = None  # it has shapes with fewer vectors than shards


class TestFaissShardsIvf(IndexTests):
    index = FaissShardsIndex
    options: ClassVar = {"shards": 2, "factory": "IVF4,Flat", "nprobe": 3}
    exact = False
    test_any_shape = None


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 5), st.integers(0, 99), st.data())
def test_cut_anywhere_it_answers_as_one(n_vectors, dim, seed, data):
    """Small whole numbers: products are exact, and most scores are tied."""
    shards, k = (data.draw(st.integers(1, n_vectors)) for _ in range(2))
    generator = torch.Generator().manual_seed(seed)
    draw = [torch.randint(-2, 3, (n, dim), generator=generator).float() for n in (n_vectors, 4)]
    cut = FaissShardsIndex.build(draw[0], {"shards": shards}).search(draw[1], k)
    whole = FaissCpuIndex.build(draw[0]).search(draw[1], k)
    for found, wanted in zip(cut, whole, strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("factory", ["Flat", "IVF4,Flat", "IVF4,PQ4x4fs"])
def test_read_back_it_answers_the_same(tmp_path, factory):
    vectors_VD, queries_BD = vectors(900, 8), vectors(20, 8, seed=3)
    options = {"shards": 3, "factory": factory} | ({} if factory == "Flat" else {"nprobe": 4})
    built = FaissShardsIndex.build(vectors_VD, options)
    built.save(tmp_path / "index")
    read = FaissShardsIndex.load(tmp_path / "index", vectors_VD, options)
    for found, wanted in zip(read.search(queries_BD, 10), built.search(queries_BD, 10), strict=True):
        assert torch.equal(found, wanted)
    if "PQ" not in factory:  # all lists are probed: nothing is missed
        exact = FaissCpuIndex.build(vectors_VD).search(queries_BD, 10)
        assert torch.equal(read.search(queries_BD, 10)[1], exact[1])
    if factory != "Flat":
        with pytest.raises(UsageError, match="nprobe"):
            built.with_effort({"nprobe": 0})
        assert built.efforts() == [{"nprobe": 1}, {"nprobe": 2}, {"nprobe": 4}]
        assert built.with_effort({"nprobe": 1}).search(queries_BD, 10)[1].shape == (20, 10)


def test_what_does_not_fit_is_refused(tmp_path):
    vectors_VD = vectors(90, 8)
    with pytest.raises(UsageError, match="shards = 91, but there are 90 vectors"):
        FaissShardsIndex.build(vectors_VD, {"shards": 91})
    path = tmp_path / "index"
    FaissShardsIndex.build(vectors_VD, {"shards": 3}).save(path)
    for shards in (2, 4):
        with pytest.raises(StoreError, match=r"index|shards|ends too early"):
            FaissShardsIndex.load(path, vectors_VD, {"shards": shards})
    with pytest.raises(StoreError, match="publish again"):
        FaissShardsIndex.load(path, vectors_VD[:89], {"shards": 3})
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(StoreError, match="can't read"):
        FaissShardsIndex.load(path, vectors_VD, {"shards": 3})
    path.unlink()
    with pytest.raises(StoreError, match="there is no index file"):
        FaissShardsIndex.load(path, vectors_VD, {"shards": 3})
