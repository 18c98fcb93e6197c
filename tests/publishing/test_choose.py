"""Measuring an index, and choosing one by a target: against counted answers and fakes whose figures are known."""

from __future__ import annotations

import time
from typing import ClassVar

import numpy as np
import pytest
import torch

from bseq_plugin import IndexTarget, Retriever, UsageError
from bseq_plugin.indexes.exact import ExactIndex
from bseq_plugin.indexes.faiss_cpu import FaissCpuIndex
from bseq_plugin.publishing import choose
from bseq_plugin.publishing.choose import choose_index
from bseq_plugin.publishing.measure import measure, recall, size_of, spread_queries, true_rows, variants
from bseq_plugin.publishing.publish import publish_model
from bseq_plugin.store.store import Store
from bseq_plugin.testing.indexes import vectors


class HalfIndex(ExactIndex):
    """Finds the true hits at even places only, and takes its time: recall 0.5 and a known latency."""

    name = "half"
    milliseconds: ClassVar[float] = 2.0

    def search(self, queries_BD, k):
        time.sleep(self.milliseconds / 1e3)
        scores_Bk, rows_Bk = super().search(queries_BD, k)
        rows_Bk[:, 1::2] = -1
        return scores_Bk.masked_fill(rows_Bk < 0, -torch.inf), rows_Bk


def test_recall_is_a_count():
    generator = np.random.default_rng(0)
    wanted = np.stack([generator.permutation(50)[:10] for _ in range(70)])
    found = np.stack([generator.permutation(50)[:10] for _ in range(70)])
    found[3, 4:] = -1
    counted = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(wanted, found, strict=True)])
    assert recall(torch.from_numpy(found), torch.from_numpy(wanted)) == pytest.approx(counted)
    assert recall(torch.empty(0, 5).long(), torch.empty(0, 5).long()) == 1.0


def test_what_is_measured_is_what_was_made():
    vectors_VD, queries_QD = vectors(200, 8), vectors(30, 8, seed=1)
    index = HalfIndex.build(vectors_VD)
    found = measure(index, {}, queries_QD, true_rows(vectors_VD, queries_QD, 10), 1.5, 32.0)
    assert found.recall == 0.5
    for times in found.latency_ms.values():
        assert 2.0 <= times["p50"] <= times["p95"] <= times["p99"]
    assert (found.k, found.build_seconds, found.bytes_per_vector) == (10, 1.5, 32.0)


def test_queries_are_of_users_with_events_and_spread_over_them():
    interests_UKD = torch.arange(20).float().reshape(10, 1, 2)
    lengths = np.array([0, 3, 1, 0, 2, 5, 0, 1, 1, 4])
    chosen = spread_queries(interests_UKD, lengths, 3)
    assert chosen.tolist() == [interests_UKD[user, 0].tolist() for user in (1, 5, 9)]
    assert len(spread_queries(interests_UKD, lengths, 100)) == 7
    assert len(spread_queries(interests_UKD, np.zeros(10, int), 100)) == 0


@pytest.mark.parametrize(("factory", "option"), [("IVF16,Flat", "nprobe"), ("HNSW8", "ef_search")])
def test_efforts_go_from_quick_to_thorough(factory, option):
    vectors_VD, queries_QD = vectors(2_000, 16), vectors(60, 16, seed=1)
    true = true_rows(vectors_VD, queries_QD, 10)
    index = FaissCpuIndex.build(vectors_VD, {"factory": factory})
    found = [(recall(v.search(queries_QD, 10)[1], true), o[option]) for v, o in variants(index, {"factory": factory})]
    assert [effort for _, effort in found] == sorted(effort for _, effort in found)
    assert found[0][0] < found[-1][0]
    if option == "nprobe":
        assert found[-1] == (1.0, 16)  # all lists: exact
    fixed = list(variants(index, {"factory": factory, option: 16}))
    assert [options[option] for _, options in fixed] == [16]
    assert next(iter(variants(ExactIndex.build(vectors_VD), {})))[1] == {}


def test_sizes_are_those_of_files():
    vectors_VD = vectors(500, 8)
    assert size_of(ExactIndex.build(vectors_VD), vectors_VD) == 32
    flat = size_of(FaissCpuIndex.build(vectors_VD), vectors_VD)
    assert 32 <= flat < 33
    assert size_of(FaissCpuIndex.build(vectors_VD, {"factory": "HNSW8"}), vectors_VD) > 32 + 2 * 8 * 4


@pytest.fixture
def kinds(monkeypatch):
    """Index "half" by name, beside ours."""
    from bseq_plugin import plugin_manager

    real = plugin_manager().part
    monkeypatch.setattr(
        type(plugin_manager()), "part", lambda self, kind, name: HalfIndex if name == "half" else real(kind, name)
    )
    return (("half", {}), ("faiss_cpu", {"factory": "IVF16,Flat"}), ("exact", {}))


def test_the_first_that_is_enough_is_chosen(kinds):
    vectors_VD, queries_QD = vectors(2_000, 16), vectors(60, 16, seed=1)
    target = IndexTarget(recall=0.9, k=10, memory_mb=1000)
    choice = choose_index(vectors_VD, queries_QD, target, kinds)
    assert (choice.name, choice.options["factory"]) == ("faiss_cpu", "IVF16,Flat")
    reached = [found.recall for found in choice.tried]
    assert reached[0] == 0.5  # "half" was asked first
    assert reached[-1] >= 0.9 > max(reached[:-1])  # no more effort than is needed
    found = recall(choice.index.search(queries_QD, 10)[1], true_rows(vectors_VD, queries_QD, 10))
    assert found == pytest.approx(reached[-1])
    half = choose_index(vectors_VD, queries_QD, IndexTarget(recall=0.5, k=10, memory_mb=1000), kinds)
    assert half.name == "half"


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (IndexTarget(recall=0.6, k=10, memory_mb=1000), r"half: recall@10 0\.5000 < 0\.6"),
        (IndexTarget(recall=0.1, k=10, p99_ms=1.0), r"half: p99 \d+\.\d+ ms > 1\.0"),
        (IndexTarget(recall=0.1, k=10, memory_mb=0.01), r"half: 0 MB > 0\.01"),
    ],
)
def test_no_index_that_is_enough_is_an_error_that_says_what_each_reached(kinds, target, reason):
    with pytest.raises(UsageError, match=reason):
        choose_index(vectors(200, 16), vectors(10, 16, seed=1), target, kinds[:1])


def test_auto_is_exact_while_that_is_cheap_and_nothing_else_is_asked(kinds, monkeypatch):
    vectors_VD, queries_QD = vectors(2_000, 16), vectors(60, 16, seed=1)
    choice = choose_index(vectors_VD, queries_QD)
    assert (choice.name, choice.tried) == ("exact", ())
    monkeypatch.setattr(choose, "MAX_EXACT_ITEMS", 1_999)
    assert choose_index(vectors_VD, queries_QD, kinds=kinds).name == "faiss_cpu"
    assert choose_index(vectors_VD, queries_QD[:0], kinds=kinds).name == "exact"  # nothing to measure with


@pytest.mark.parametrize(
    "settings", [{"recall": 0}, {"recall": 1.1}, {"recall": float("nan")}, {"k": 0}, {"k": 1.5}, {"memory_mb": -1},
                 {"p99_ms": 0}, {"p99_ms": float("nan")}]
)  # fmt: skip
def test_targets_that_make_no_sense_are_refused(settings):
    with pytest.raises(UsageError, match=next(iter(settings))):
        IndexTarget(**settings)


def test_auto_publishes_what_it_measured(tmp_path, make_model, make_histories, monkeypatch):
    monkeypatch.setattr(choose, "MAX_EXACT_ITEMS", 10)
    model = make_model(n_items=400, dim=6)
    histories = make_histories(model, [9] * 30)
    publish_model(model, histories, tmp_path / "store", target=IndexTarget(recall=0.95, k=20))
    index = Store(tmp_path / "store").current().manifest["index"]
    assert index["name"] == "faiss_cpu"
    assert index["measured"]["recall"] >= 0.95
    assert index["measured"]["options"] == index["options"]
    found = Retriever.open(tmp_path / "store").retrieve(histories.user_ids, k=5)
    assert len(found) == 150
    with pytest.raises(UsageError, match="'auto' chooses its own"):
        publish_model(model, histories, tmp_path / "store", index_options={"factory": "Flat"})
