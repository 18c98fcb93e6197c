"""The exact index: the suite, in several chunkings, and what only it promises."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bseq_plugin import RowMask, UsageError
from bseq_plugin.indexes.exact import QUERY_BLOCK, ExactIndex
from bseq_plugin.testing.indexes import IndexTests, vectors


class TestExactIndex(IndexTests):
    index = ExactIndex


class TestExactIndexInSmallChunks(IndexTests):
    index = ExactIndex
    options: ClassVar = {"chunk": 7}


class TestExactIndexInHalfPrecision(IndexTests):
    """Ranks the rounded vectors: whole numbers, which the suite's ties are made of, lose nothing."""

    index = ExactIndex
    options: ClassVar = {"dtype": "float16"}
    exact = False

    def check_hits(self, queries_BD, vectors_VD, scores_Bk, rows_Bk, k):
        super().check_hits(queries_BD, vectors_VD.half().float(), scores_Bk, rows_Bk, k)


@pytest.mark.gpu
class TestExactIndexOnAGpu(IndexTests):
    index = ExactIndex
    options: ClassVar = {"device": "cuda"}


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_a_masked_search_is_a_search_among_what_is_left(data):
    n, dim, n_queries = (data.draw(st.integers(low, high)) for low, high in ((1, 40), (1, 4), (0, 6)))
    k, seed, chunk = data.draw(st.integers(1, n)), data.draw(st.integers(0, 99)), data.draw(st.integers(1, 50))
    vectors_VD, queries_BD = vectors(n, dim, seed, whole=True), vectors(n_queries, dim, seed + 1, whole=True)
    allowed = data.draw(st.none() | st.lists(st.booleans(), min_size=n, max_size=n))
    pair = st.tuples(st.integers(0, max(0, n_queries - 1)), st.integers(0, n - 1))
    pairs = data.draw(st.lists(pair, max_size=60)) if n_queries else []
    denied = tuple(torch.tensor([p[i] for p in pairs], dtype=torch.int64) for i in (0, 1))
    mask = RowMask(None if allowed is None else torch.tensor(allowed), denied)
    scores_Bk, rows_Bk = ExactIndex.build(vectors_VD, {"chunk": chunk}).search_masked(queries_BD, k, mask)
    for query in range(n_queries):
        left = [r for r in range(n) if (allowed is None or allowed[r]) and (query, r) not in pairs]
        scores = {r: float(queries_BD[query] @ vectors_VD[r]) for r in left}
        wanted = sorted(left, key=lambda r: (-scores[r], r))[:k]
        missing = k - len(wanted)
        assert rows_Bk[query].tolist() == wanted + [-1] * missing
        assert scores_Bk[query].tolist() == [scores[r] for r in wanted] + [-float("inf")] * missing


@pytest.mark.parametrize(
    "mask",
    [
        RowMask(torch.ones(4, dtype=torch.bool)),
        RowMask(torch.ones(5)),
        RowMask(None, (torch.tensor([2]), torch.tensor([0]))),
        RowMask(None, (torch.tensor([0]), torch.tensor([5]))),
        RowMask(None, (torch.tensor([-1]), torch.tensor([0]))),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(mask):
    with pytest.raises(UsageError, match="allowed_V|denied pairs"):
        ExactIndex.build(vectors(5, 3)).search_masked(vectors(2, 3), 1, mask)


def test_a_gpu_that_torch_does_not_see_is_refused():
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="torch sees no GPU"):
            ExactIndex.build(vectors(5, 3), {"device": "cuda"})


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
