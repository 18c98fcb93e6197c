"""Conformance suite of vector indexes.

    from bseq_plugin.testing.indexes import IndexTests

    class TestMine(IndexTests):
        index = MyIndex

Shape letters: B queries, V vectors, D width, k hits of a query.
"""

# ruff: noqa: D102  (the names of the tests say what they check)

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from bseq_plugin.errors import BseqError, UsageError
from bseq_plugin.schema.indexes import IndexCapabilities, VectorIndex
from bseq_plugin.schema.options import PartOptions


def brute_force(queries_BD: Tensor, vectors_VD: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """``(scores_Bk float64, rows_Bk)`` by a full sort in float64 numpy; equal scores by ascending row."""
    scores_BV = queries_BD.double().numpy() @ vectors_VD.double().numpy().T
    rows_Bk = np.argsort(-scores_BV, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores_BV, rows_Bk, axis=1), rows_Bk


def vectors(n: int, dim: int, seed: int = 0, *, whole: bool = False) -> Tensor:
    """float32 [n, dim]; ``whole``: small whole numbers, whose products are exact, so that equal scores are equal."""
    generator = torch.Generator().manual_seed(seed)
    if whole:
        return torch.randint(-2, 3, (n, dim), generator=generator).float()
    return torch.randn(n, dim, generator=generator)


class IndexTests:
    """Set ``index``; set ``exact = False`` and ``min_recall`` for options that make the search approximate."""

    index: ClassVar[type[VectorIndex]]
    options: ClassVar[Mapping[str, Any]] = {}
    exact: ClassVar[bool] = True
    min_recall: ClassVar[float] = 0.8  # share of the true top 10 that an approximate index finds
    n_vectors: ClassVar[int] = 500  # enough to train what needs training

    def build(self, vectors_VD: Tensor) -> VectorIndex:
        """The index under test over ``vectors_VD``."""
        return self.index.build(vectors_VD, self.parsed)

    @property
    def parsed(self) -> PartOptions:
        """The options of the index under test."""
        return self.index.checked_options(self.options)

    def check_hits(self, queries_BD: Tensor, vectors_VD: Tensor, scores_Bk: Tensor, rows_Bk: Tensor, k: int) -> None:
        """Shapes, dtypes, order, no row twice, scores of the rows they claim; the right rows if exact."""
        n = vectors_VD.shape[0]
        assert scores_Bk.shape == rows_Bk.shape == (queries_BD.shape[0], k)
        assert scores_Bk.dtype == torch.float32
        assert rows_Bk.dtype == torch.int64
        assert scores_Bk.device.type == rows_Bk.device.type == "cpu"
        assert bool(((rows_Bk >= -1) & (rows_Bk < n)).all())
        assert bool((scores_Bk[:, :-1] >= scores_Bk[:, 1:]).all())
        assert torch.equal(rows_Bk == -1, scores_Bk == -torch.inf)
        for rows_k in rows_Bk:
            found = rows_k[rows_k >= 0]
            assert found.unique().numel() == found.numel()
        claimed_Bk = torch.einsum("bd,bkd->bk", queries_BD.double(), vectors_VD.double()[rows_Bk.clamp_min(0)])
        scale = 1e-5 * (1 + float(claimed_Bk.abs().max())) if claimed_Bk.numel() else 0.0
        found_Bk = rows_Bk >= 0
        torch.testing.assert_close(scores_Bk.double()[found_Bk], claimed_Bk[found_Bk], rtol=0, atol=scale)
        if self.exact:
            wanted_Bk, _ = brute_force(queries_BD, vectors_VD, k)
            assert bool(found_Bk.all())
            torch.testing.assert_close(scores_Bk.double(), torch.from_numpy(wanted_Bk), rtol=0, atol=scale)

    def test_has_a_name_and_capabilities(self) -> None:
        assert isinstance(self.index.name, str)
        assert isinstance(self.index.capabilities, IndexCapabilities)

    @pytest.mark.parametrize("k", [1, 2, 10, 37])
    def test_finds_what_brute_force_finds(self, k: int) -> None:
        vectors_VD, queries_BD = vectors(self.n_vectors, 16), vectors(40, 16, seed=1)
        scores_Bk, rows_Bk = self.build(vectors_VD).search(queries_BD, k)
        self.check_hits(queries_BD, vectors_VD, scores_Bk, rows_Bk, k)
        _, wanted_Bk = brute_force(queries_BD, vectors_VD, k)
        hits = [len(set(a) & set(b)) for a, b in zip(rows_Bk.tolist(), wanted_Bk.tolist(), strict=True)]
        assert sum(hits) / (k * 40) >= (1.0 if self.exact else self.min_recall)

    def test_equal_scores_come_in_ascending_row_order(self) -> None:
        if not self.exact:
            return
        vectors_VD, queries_BD = vectors(300, 3, whole=True), vectors(30, 3, seed=1, whole=True)
        index = self.build(vectors_VD)
        for k in (1, 2, 7, 50, 150, 300):
            _, rows_Bk = index.search(queries_BD, k)
            np.testing.assert_array_equal(rows_Bk.numpy(), brute_force(queries_BD, vectors_VD, k)[1])

    def test_all_vectors_equal(self) -> None:
        if self.exact:
            _, rows_Bk = self.build(torch.ones(self.n_vectors, 4)).search(torch.ones(3, 4), 5)
            assert rows_Bk.tolist() == [[0, 1, 2, 3, 4]] * 3

    def test_k_is_the_whole_catalogue(self) -> None:
        vectors_VD, queries_BD = vectors(self.n_vectors, 8), vectors(3, 8, seed=1)
        scores_BV, rows_BV = self.build(vectors_VD).search(queries_BD, self.n_vectors)
        self.check_hits(queries_BD, vectors_VD, scores_BV, rows_BV, self.n_vectors)
        if self.exact:
            assert [sorted(rows) for rows in rows_BV.tolist()] == [list(range(self.n_vectors))] * 3

    @pytest.mark.parametrize("k", [0, -1, 100_000, 2.0, True, None])
    def test_k_out_of_range_is_refused(self, k: Any) -> None:
        with pytest.raises(UsageError, match="k = "):
            self.build(vectors(self.n_vectors, 8)).search(vectors(2, 8), k)

    @pytest.mark.parametrize("shape", [(2, 7), (2, 9), (8,), (1, 2, 8), (2, 0)])
    def test_wrong_width_is_refused(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(UsageError, match="queries have"):
            self.build(vectors(self.n_vectors, 8)).search(torch.zeros(shape), 1)

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    def test_queries_that_are_not_finite_are_refused(self, value: float) -> None:
        queries_BD = vectors(3, 8)
        queries_BD[1, 5] = value
        with pytest.raises(UsageError, match=r"NaN or Inf.*\[1\]"):
            self.build(vectors(self.n_vectors, 8)).search(queries_BD, 1)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_vectors_that_are_not_finite_are_refused(self, value: float) -> None:
        vectors_VD = vectors(self.n_vectors, 8)
        vectors_VD[3, 2] = value
        with pytest.raises(UsageError, match=r"NaN or Inf.*\[3\]"):
            self.build(vectors_VD)

    @pytest.mark.parametrize("shape", [(0, 4), (4, 0), (4,), (2, 2, 2)])
    def test_unusable_vectors_are_refused(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(UsageError):
            self.build(torch.zeros(shape))

    @pytest.mark.parametrize("values", [[[0.0] * 8], np.zeros((1, 8), np.float32), torch.zeros(1, 8).long()])
    def test_queries_of_another_type_are_refused(self, values: Any) -> None:
        with pytest.raises(UsageError, match="queries"):
            self.build(vectors(self.n_vectors, 8)).search(values, 1)

    @pytest.mark.parametrize("form", ["float64", "float16", "bfloat16", "strided", "transposed", "requires_grad"])
    def test_any_float_tensor_is_a_query(self, form: str) -> None:
        vectors_VD, plain_BD = vectors(self.n_vectors, 8, whole=True), vectors(5, 8, seed=1, whole=True)
        forms = {
            "strided": torch.stack([plain_BD, plain_BD], dim=2)[:, :, 0],
            "transposed": plain_BD.T.contiguous().T,
            "requires_grad": plain_BD.clone().requires_grad_(),
        }
        queries_BD = forms[form] if form in forms else plain_BD.to(getattr(torch, form))
        index = self.build(vectors_VD)
        wanted_Bk, got_Bk = index.search(plain_BD, 5), index.search(queries_BD, 5)
        assert torch.equal(got_Bk[0], wanted_Bk[0])
        assert torch.equal(got_Bk[1], wanted_Bk[1])
        assert not got_Bk[0].requires_grad

    def test_inputs_are_left_as_they_were(self) -> None:
        vectors_VD, queries_BD = vectors(self.n_vectors, 8), vectors(5, 8, seed=1)
        copies = vectors_VD.clone(), queries_BD.clone()
        self.build(vectors_VD).search(queries_BD, 3)
        assert torch.equal(vectors_VD, copies[0])
        assert torch.equal(queries_BD, copies[1])

    def test_a_batch_of_no_queries(self) -> None:
        scores_Bk, rows_Bk = self.build(vectors(self.n_vectors, 8)).search(torch.zeros(0, 8), 3)
        assert scores_Bk.shape == rows_Bk.shape == (0, 3)
        assert rows_Bk.dtype == torch.int64

    def test_a_query_of_zeros(self) -> None:
        vectors_VD = vectors(self.n_vectors, 8)
        scores_Bk, rows_Bk = self.build(vectors_VD).search(torch.zeros(2, 8), 3)
        self.check_hits(torch.zeros(2, 8), vectors_VD, scores_Bk, rows_Bk, 3)

    def test_save_and_load_answer_alike(self, tmp_path: Path) -> None:
        vectors_VD, queries_BD = vectors(self.n_vectors, 8), vectors(20, 8, seed=1)
        built = self.build(vectors_VD)
        built.save(tmp_path / "items.index")
        loaded = self.index.load(tmp_path / "items.index", vectors_VD, self.parsed)
        for got, wanted in zip(loaded.search(queries_BD, 9), built.search(queries_BD, 9), strict=True):
            assert torch.equal(got, wanted)

    def test_a_saved_index_does_not_load_over_other_vectors(self, tmp_path: Path) -> None:
        path = tmp_path / "items.index"
        self.build(vectors(self.n_vectors, 8)).save(path)
        if path.exists():
            for other_VD in (vectors(self.n_vectors + 1, 8), vectors(self.n_vectors, 9)):
                with pytest.raises(BseqError):
                    self.index.load(path, other_VD, self.parsed)

    def test_unknown_options_are_refused(self) -> None:
        with pytest.raises(UsageError, match="no_such_option"):
            self.index.build(vectors(self.n_vectors, 8), self.index.checked_options({"no_such_option": 1}))

    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
    @given(data=st.data())
    def test_any_shape(self, data: st.DataObject) -> None:
        n = data.draw(st.integers(1, 60)) if self.exact else self.n_vectors
        dim, n_queries = data.draw(st.integers(1, 12)), data.draw(st.integers(0, 30))
        k = data.draw(st.integers(1, n))
        whole, seed = self.exact and data.draw(st.booleans()), data.draw(st.integers(0, 99))
        vectors_VD, queries_BD = vectors(n, dim, seed, whole=whole), vectors(n_queries, dim, seed + 1, whole=whole)
        scores_Bk, rows_Bk = self.build(vectors_VD).search(queries_BD, k)
        self.check_hits(queries_BD, vectors_VD, scores_Bk, rows_Bk, k)
        if whole:
            np.testing.assert_array_equal(rows_Bk.numpy(), brute_force(queries_BD, vectors_VD, k)[1])
