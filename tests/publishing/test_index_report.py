"""The truth report: recall of known indexes, and what the end task loses, against counts by hand."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from instants import DAY_US

from bseq_plugin import Events, Retriever, UsageError
from bseq_plugin.publishing.index_report import index_report
from bseq_plugin.publishing.publish import publish_model


@pytest.fixture(scope="module")
def shop(tmp_path_factory, make_model, make_histories):
    """(store, model, histories, test log): 40 users, each of whom buys five new items later."""
    model = make_model(n_items=300, dim=6)
    histories = make_histories(model, [8] * 40)
    path = tmp_path_factory.mktemp("report") / "store"
    publish_model(model, histories, path)
    random = np.random.default_rng(3)
    rows = [
        (user, model.vocabulary.item_ids[item], int(histories.timestamps.max()) + DAY_US)
        for user in histories.user_ids
        for item in random.permutation(300)[:5]
    ]
    log = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    return path, model, histories, Events.from_frame(log, timestamp_unit="us")


KINDS = (("exact", {}), ("faiss_cpu", {"factory": "IVF8,Flat"}))


def test_the_rows_are_what_each_index_finds(shop):
    path, model, histories, _ = shop
    report = index_report(path, k=10, kinds=KINDS)
    assert [row.options.get("nprobe") for row in report.rows] == [None, 1, 2, 4, 8]
    exact, *others = report.rows
    assert (exact.recall, others[-1].recall) == (1.0, 1.0)  # all lists are looked at
    assert others[0].recall < 1
    assert (report.n_items, report.dim, report.n_queries, report.k) == (300, 6, 40, 10)
    assert exact.bytes_per_vector == 24
    assert report.best(1.0) in (exact, others[-1])
    assert report.best(0.0) is not None
    assert json.loads(json.dumps(report.as_json()))["rows"][0]["recall"] == 1.0


def test_the_end_task_is_that_of_the_retriever(shop):
    path, model, histories, test = shop
    report = index_report(path, test, k=10, task_k=20, kinds=KINDS)
    assert report.n_task_users == 40
    hits = Retriever.open(path).retrieve(histories.user_ids, k=20)
    recalls, gains = [], []
    for place, user in enumerate(histories.user_ids):
        seen = set(model.vocabulary.item_ids[histories.items[8 * place : 8 * place + 8] - 1])
        targets = set(test.frame.item_id[test.frame.user_id == user]) - seen
        found = [item in targets for item in hits.item_id[hits.user_id == user]]
        recalls.append(sum(found) / min(20, len(targets)))
        ideal = sum(1 / np.log2(place + 2) for place in range(min(20, len(targets))))
        gains.append(sum(hit / np.log2(rank + 2) for rank, hit in enumerate(found)) / ideal)
    exact, *others = report.rows
    assert exact.task["recall"] == pytest.approx(np.mean(recalls))
    assert exact.task["ndcg"] == pytest.approx(np.mean(gains))
    assert exact.task["recall lost"] == exact.task["ndcg lost"] == 0
    for row in others:
        assert row.task["recall lost"] == pytest.approx(exact.task["recall"] - row.task["recall"])


def test_a_log_with_nothing_new_and_other_wrong_questions_are_refused(shop, tmp_path, make_model, make_histories):
    path, model, histories, test = shop
    before = Events.from_frame(test.frame.assign(timestamp=test.frame.timestamp - 400 * DAY_US), timestamp_unit="us")
    with pytest.raises(UsageError, match="no new item of a user of the store"):
        index_report(path, before)
    with pytest.raises(UsageError, match="k = 0"):
        index_report(path, k=0)
    publish_model(model, make_histories(model, [0]), tmp_path / "empty")
    with pytest.raises(UsageError, match="no user of the store has an event"):
        index_report(tmp_path / "empty")


def test_what_can_not_be_built_is_left_out_with_the_reason(shop):
    report = index_report(shop[0], k=5, kinds=(("faiss_gpu", {}), ("exact", {})))
    assert [row.index for row in report.rows] == ["exact"]
    assert "faiss_gpu" in report.skipped[0]
