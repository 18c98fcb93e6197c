"""Fitting the blend: the figure it reports is what the retriever then serves, and it finds a planted answer."""

from __future__ import annotations

import numpy as np
import pytest

from bseq_plugin.data.sequences import Sequences
from bseq_plugin.data.splits import time_window
from bseq_plugin.metrics import ranking_metrics
from bseq_plugin.publishing.publish import publish_model
from bseq_plugin.serving.fit_blend import fit_blend
from bseq_plugin.serving.retriever import Retriever

DAY_US = 86_400_000_000
START_US = 1_500_000_000_000_000
K = 4


def log(habit: bool, seed: int = 0, n_users: int = 30, n_items: int = 40) -> Sequences:
    """Sixty days before and thirty after the cut; with ``habit`` the future repeats each user's own past."""
    rng = np.random.default_rng(seed)
    items, times, offsets = [], [], [0]
    for _ in range(n_users):
        past = rng.integers(1, n_items + 1, 12)
        future = rng.choice(past, 6) if habit else rng.integers(1, n_items + 1, 6)
        days = np.sort(np.concatenate([rng.uniform(0, 60, 12), rng.uniform(60.01, 89, 6)]))
        items.append(np.concatenate([past, future]))
        times.append((START_US + days * DAY_US).astype(np.int64))
        offsets.append(offsets[-1] + 18)
    return Sequences(np.arange(n_users), np.array(offsets), np.concatenate(items), np.concatenate(times))


@pytest.mark.parametrize("habit", [True, False])
def test_the_reported_metric_is_what_the_retriever_serves(make_model, tmp_path, habit):
    model, cut_us = make_model(), START_US + 60 * DAY_US
    held_out = time_window(log(habit), cut_us, 30.0)
    fit = fit_blend(model, held_out, cut_us, K)
    publish_model(model, held_out.histories, tmp_path / "store", blend=fit.weights)
    retriever = Retriever.open(tmp_path / "store")
    hits = retriever.retrieve(held_out.histories, K, exclude="none", at="2017-09-12T02:40:00+00:00")
    top_UK = np.full((held_out.n_users, K), -1)
    places = {user: place for place, user in enumerate(held_out.histories.user_ids.tolist())}
    for hit in hits.itertuples():
        top_UK[places[hit.user_id], hit.rank - 1] = model.vocabulary.item_rows([hit.item_id])[0]
    served = ranking_metrics(top_UK, held_out.target_offsets, held_out.target_items, [K])[f"ndcg@{K}"].mean()
    assert served == pytest.approx(fit.metric, abs=1e-6)
    assert fit.metric == max(metric for _, metric in fit.tried)


def test_repeat_buyers_get_their_history_back(make_model):
    cut_us = START_US + 60 * DAY_US
    fit = fit_blend(make_model(), time_window(log(habit=True), cut_us, 30.0), cut_us, K)
    interest_alone = next(metric for weights, metric in fit.tried if weights.history == weights.recent == 0)
    assert fit.weights.history + fit.weights.recent > 0
    assert fit.metric > 2 * interest_alone
