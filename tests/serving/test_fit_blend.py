"""Fitting the blend: the figure it reports is what is served and measured, and it finds a planted answer."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from instants import DAY_US

import bseq_plugin
from bseq_plugin import RunError, Sequences, SourceInputs, UsageError, ranking_metrics
from bseq_plugin.data.splits import HeldOut, leave_one_out, time_window, training_part
from bseq_plugin.publishing.publish import publish_model
from bseq_plugin.serving.blend import history_scores
from bseq_plugin.serving.blended_model import BlendedModel
from bseq_plugin.serving.fit_blend import search_blend
from bseq_plugin.serving.sources import LEAST_DEPTH, searcher

START_US = 1_500_000_000_000_000
CUT_US = START_US + 60 * DAY_US
AT = "2017-09-12T02:40:00+00:00"  # the same instant
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


def held_out_of(sequences: Sequences, seen: str = "keep") -> HeldOut:
    evaluation = time_window(sequences, CUT_US, 30.0)
    if seen == "mask":
        evaluation = evaluation.new_items_only()
    return HeldOut(evaluation, sequences.between(None, CUT_US), CUT_US, seen)


@pytest.mark.parametrize(("habit", "seen"), [(True, "keep"), (False, "keep"), (False, "mask")])
def test_the_reported_metric_is_what_the_retriever_serves(make_model, tmp_path, habit, seen):
    model, held_out = make_model(), held_out_of(log(habit), seen)
    fit = search_blend(model, held_out, K, sources=["transitions"])
    histories = held_out.evaluation.histories
    publish_model(model, held_out.known, tmp_path / "store", blend=fit.blend)
    retriever = bseq_plugin.Retriever.open(tmp_path / "store")
    hits = retriever.retrieve(histories, K, exclude="seen" if seen == "mask" else "none", at=AT)
    top_UK = np.full((histories.n_users, K), -1)
    places = {user: place for place, user in enumerate(histories.user_ids.tolist())}
    for hit in hits.itertuples():
        top_UK[places[hit.user_id], hit.rank - 1] = model.vocabulary.item_rows([hit.item_id])[0]
    measured = BlendedModel.fitted(model, fit.blend, held_out.known).top(histories, K, seen == "mask", CUT_US)
    np.testing.assert_array_equal(measured, top_UK)
    targets = held_out.evaluation.target_offsets, held_out.evaluation.target_items
    served = ranking_metrics(top_UK, *targets, [K])[f"ndcg@{K}"].mean()
    assert served == pytest.approx(fit.metric, abs=1e-6)
    assert fit.metric == max(metric for _, metric in fit.tried) == fit.blend.reached[f"ndcg@{K}"]
    assert seen == "keep" or fit.blend.history == fit.blend.recent == 0


def test_repeat_buyers_get_their_history_back(make_model):
    fit = search_blend(make_model(), held_out_of(log(habit=True)), K)
    interest_alone = next(metric for blend, metric in fit.tried if blend.history == blend.recent == 0)
    assert fit.blend.history + fit.blend.recent > 0
    assert fit.metric > 2 * interest_alone


def naive_top(served: BlendedModel, histories: Sequences, k: int, exclude_seen: bool) -> np.ndarray:
    """Every item of the catalogue scored in float64 by a loop; a source counts as deep as it is asked."""
    vectors_VD, n_items = served.model.item_vectors_VD, served.model.vocabulary.n_items
    interests_BKD = served.model.encode(histories)
    inputs = SourceInputs(histories.known(), interests_BKD, vectors_VD, searcher(served.index, n_items))
    of_source: dict[str, dict[tuple[int, int], float]] = {}
    for name, source in served.sources.items():
        found = source.find(inputs, n_items)
        pairs = zip(found.users_N.tolist(), found.rows_N.tolist(), strict=True)
        of_source[name] = dict(zip(pairs, found.scores_N.tolist(), strict=True))
    pasts = [
        {(user, item): score for user, item, score in zip(p.users_P, p.items_P, p.scores_P, strict=True)}
        for p in (
            history_scores(histories, CUT_US, days)
            for days in (served.blend.half_life_days, served.blend.recent_half_life_days)
        )
    ]
    top_Bk = np.full((histories.n_users, k), -1)
    for user in range(histories.n_users):
        seen = set(histories.items[histories.offsets[user] : histories.offsets[user + 1]].tolist())
        shown = [item for item in range(1, n_items + 1) if not (exclude_seen and item in seen)]
        counted = {}
        for name, scores in of_source.items():
            own = sorted((-scores[user, item], item) for item in shown if (user, item) in scores)
            counted[name] = {item: -score for score, item in own[: max(k, LEAST_DEPTH)]}
        blended = {}
        for item in shown:
            interest = max(float(i) for i in interests_BKD[user].double() @ vectors_VD[item].double())
            score = served.blend.interest * interest
            if not exclude_seen:
                score += served.blend.history * pasts[0].get((user, item), 0.0)
                score += served.blend.recent * pasts[1].get((user, item), 0.0)
            blended[item] = score + sum(w * counted[name].get(item, 0.0) for name, w in served.blend.sources.items())
        best = sorted(shown, key=lambda item: -blended[item])[:k]
        top_Bk[user, : len(best)] = best
    return top_Bk


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_what_is_measured_equals_a_loop_over_the_catalogue(make_model, exclude_seen):
    """A source's list is longer than what is asked of it, and it says much of items of little interest."""
    model = make_model(n_items=3 * LEAST_DEPTH)
    histories = log(False, n_users=12, n_items=3 * LEAST_DEPTH).between(None, CUT_US)
    known = log(False, seed=5, n_users=400, n_items=3 * LEAST_DEPTH).between(None, CUT_US)
    blend = bseq_plugin.Blend(0.5, 2.0, 60.0, 1.0, 15.0, {"transitions": 8.0, "popularity": 3.0})
    served = BlendedModel.fitted(model, blend, known)
    expected = naive_top(served, histories, 7, exclude_seen)
    np.testing.assert_array_equal(served.top(histories, 7, exclude_seen, CUT_US), expected)
    alone = BlendedModel.fitted(model, bseq_plugin.Blend(), known).top(histories, 7, exclude_seen, CUT_US)
    assert (alone != expected).mean() > 0.3


def test_the_blend_of_a_run_is_that_of_its_validation(tiny_run):
    """``evaluate`` finds on the same part, with the code that serves, what the search found."""
    run = bseq_plugin.Run.open(tiny_run)
    blend = bseq_plugin.fit_blend(run, sources=["transitions", "popularity"], k=5)
    sequences = run.sequences()
    evaluation = leave_one_out(sequences, "validation").new_items_only()
    by_hand = HeldOut(evaluation, training_part(sequences), None, "mask")
    assert blend == search_blend(run.model(), by_hand, 5, ["transitions", "popularity"]).blend
    report = bseq_plugin.evaluate(run, "validation", (5, 10), baselines=False, blend=blend)
    assert report.mean("ndcg@5", "blend") == pytest.approx(blend.reached["ndcg@5"], abs=1e-9)
    assert report.mean("ndcg@5", "blend") > report.mean("ndcg@5")


def test_the_command_saves_the_blend_and_publish_takes_it_along(tiny_run, bseq, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    code, out, err = bseq("fit-blend", run, "--source", "transitions", "--k", 5)
    assert code == 0, err
    blend = bseq_plugin.fit_blend(run, sources=["transitions"], k=5)
    assert bseq_plugin.Blend.load(run / "blend.json") == blend
    assert f"ndcg@5 {blend.reached['ndcg@5']:.4g}" in out
    assert bseq("publish", run, "--store", tmp_path / "store")[0] == 0
    assert bseq_plugin.Retriever.open(tmp_path / "store")._served.blend == blend
    other = bseq_plugin.Blend(history=2.0)
    other.save(tmp_path / "other.json")
    assert bseq("publish", run, "--store", tmp_path / "store", "--blend", tmp_path / "other.json")[0] == 0
    assert bseq_plugin.Retriever.open(tmp_path / "store")._served.blend == other


def test_what_can_not_be_fitted_is_refused(tiny_run, tmp_path):
    with pytest.raises(RunError, match="no run directory|not a run directory"):
        bseq_plugin.fit_blend(tmp_path)
    with pytest.raises(UsageError, match="unknown candidate source 'nobody'"):
        bseq_plugin.fit_blend(tiny_run, sources=["nobody"])
    with pytest.raises(UsageError, match="k = 0"):
        bseq_plugin.fit_blend(tiny_run, k=0)
    with pytest.raises(UsageError, match="use test or validation"):
        bseq_plugin.fit_blend(tiny_run, split="train")
