"""The exact index: the suite, in several chunkings, and what only it promises."""

from __future__ import annotations

from typing import ClassVar

import torch

from bseq_plugin.indexes.exact import QUERY_BLOCK, ExactIndex
from bseq_plugin.testing.indexes import IndexTests, vectors


class TestExactIndex(IndexTests):
    index = ExactIndex


class TestExactIndexInSmallChunks(IndexTests):
    index = ExactIndex
    options: ClassVar = {"chunk": 7}


def test_chunk_size_and_query_blocks_do_not_change_the_answer():
    vectors_VD, queries_BD = vectors(200, 6, whole=True), vectors(QUERY_BLOCK + 5, 6, seed=1, whole=True)
    scores_Bk, rows_Bk = ExactIndex.build(vectors_VD).search(queries_BD, 20)
    for chunk in (1, 19, 20, 21, 199, 200, 1000):
        other = ExactIndex.build(vectors_VD, {"chunk": chunk}).search(queries_BD, 20)
        assert torch.equal(other[0], scores_Bk)
        assert torch.equal(other[1], rows_Bk)


def test_bfloat16_scores_the_rounded_vectors_in_float32():
    vectors_VD, queries_BD = vectors(300, 16), vectors(9, 16, seed=1)
    rounded_VD = vectors_VD.bfloat16().float()
    got = ExactIndex.build(vectors_VD, {"dtype": "bfloat16"}).search(queries_BD, 10)
    wanted = ExactIndex.build(rounded_VD).search(queries_BD, 10)
    assert torch.equal(got[1], wanted[1])
    assert torch.equal(got[0], wanted[0])


def test_never_holds_a_block_larger_than_promised(monkeypatch):
    sizes = []
    top = torch.topk
    monkeypatch.setattr(torch, "topk", lambda x, *a, **k: (sizes.append(tuple(x.shape)), top(x, *a, **k))[1])
    ExactIndex.build(vectors(5_000, 4), {"chunk": 1_000}).search(vectors(700, 4, seed=1), 3)
    assert max(b for b, _ in sizes) <= QUERY_BLOCK
    assert max(v for _, v in sizes) <= 1_000


def test_saves_no_file(tmp_path):
    ExactIndex.build(vectors(5, 4)).save(tmp_path / "items.index")
    assert not list(tmp_path.iterdir())
