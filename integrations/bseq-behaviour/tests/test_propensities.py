"""Heads on frozen vectors: curves against pairs and scikit-learn, heads that learn, tasks from a log, bad input."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from bseq_behaviour.heads.mlp import MlpHead
from bseq_behaviour.heads.mmoe import MmoeHead
from bseq_behaviour.propensity.curves import auroc, average_precision
from bseq_behaviour.propensity.fit_heads import FittedHeads, Rows, TaskWeights, fit_heads, task_losses
from bseq_behaviour.propensity.inputs import Scale
from bseq_behaviour.propensity.propensities import Question, fit_propensities, score
from hypothesis import given, settings
from hypothesis import strategies as st
from instants import DAY_US

import bseq_plugin as bseq

scored = st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=2, max_size=30).filter(
    lambda rows: len({yes for yes, _ in rows}) == 2
)


@settings(deadline=None)
@given(scored)
def test_auroc_counts_pairs(rows):
    labels, scores = np.array([yes for yes, _ in rows], float), np.array([s for _, s in rows], float)
    pairs = [
        1.0 if scores[yes] > scores[no] else 0.5 if scores[yes] == scores[no] else 0.0
        for yes, no in itertools.product(np.flatnonzero(labels > 0), np.flatnonzero(labels == 0))
    ]
    assert auroc(labels, scores) == pytest.approx(np.mean(pairs))


@settings(deadline=None)  # the first import takes its time
@given(scored)
def test_curves_agree_with_scikit_learn(rows):
    metrics = pytest.importorskip("sklearn.metrics")
    labels, scores = np.array([yes for yes, _ in rows], float), np.array([s for _, s in rows], float)
    assert auroc(labels, scores) == pytest.approx(metrics.roc_auc_score(labels, scores))
    assert average_precision(labels, scores) == pytest.approx(metrics.average_precision_score(labels, scores))


def test_curves_of_one_class():
    for curve in (auroc, average_precision):
        with pytest.raises(bseq.SchemaError, match="labels are no"):
            curve(np.zeros(3), np.arange(3.0))


def test_an_independent_task_does_not_change_another_of_the_mlp():
    head = MlpHead(4, 2)
    torch.nn.init.normal_(head.out_KH)
    head.eval()
    vectors_ND = torch.randn(5, 4)
    before = head(vectors_ND)[:, 0].clone()
    with torch.no_grad():
        head.into_KDH[1].zero_()
        head.out_KH[1].zero_()
        head.linear.weight[1].zero_()
    assert torch.equal(head(vectors_ND)[:, 0], before)


def test_the_mixture_is_what_a_loop_over_tasks_and_experts_gives():
    head = MmoeHead(4, 3).eval()
    vectors_ND = torch.randn(5, 4)
    n_experts, hidden = head.options.n_experts, head.options.hidden
    for n, k in itertools.product(range(5), range(3)):
        inside = torch.nn.functional.gelu(head.experts(vectors_ND[n])).reshape(n_experts, hidden)
        gates = torch.softmax(head.gates(vectors_ND[n])[k * n_experts : (k + 1) * n_experts], 0)
        mixed = sum(gates[e] * inside[e] for e in range(n_experts))
        torch.testing.assert_close(head(vectors_ND)[n, k], mixed @ head.towers_KH[k] + head.bias_K[k])


def test_uncertainty_weighs_by_the_formula_and_moves_weight_to_the_surer_task():
    weights, losses_K = TaskWeights(2, "uncertainty"), torch.tensor([0.1, 0.7])
    with torch.no_grad():
        weights.log_variance_K.copy_(torch.tensor([0.5, -1.0]))
    assert weights(losses_K).item() == pytest.approx(0.1 * np.exp(-0.5) + 0.25 + 0.7 * np.exp(1.0) - 0.5)
    optimizer = torch.optim.SGD(weights.parameters(), lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        weights(losses_K).backward()
        optimizer.step()
    # its minimum is exp(s) = 2 * loss
    torch.testing.assert_close(weights.log_variance_K.exp(), 2 * losses_K, atol=0.02, rtol=0.05)
    assert TaskWeights(2, "equal")(losses_K).item() == pytest.approx(0.8)


def test_losses_of_rows_that_were_not_asked():
    logits_NK = torch.tensor([[0.0, 2.0], [1.0, -1.0]], requires_grad=True)
    labels_NK = torch.tensor([[1.0, float("nan")], [0.0, float("nan")]])
    losses_K = task_losses(logits_NK, labels_NK)
    assert losses_K[0].item() == pytest.approx((np.log(2) + np.log1p(np.e)) / 2)
    assert losses_K[1].item() == 0
    losses_K.sum().backward()
    assert torch.isfinite(logits_NK.grad).all()
    assert (logits_NK.grad[:, 1] == 0).all()


def test_scale_fills_what_is_missing_with_the_mean():
    values_ND = np.array([[1.0, np.nan, 5.0], [3.0, np.nan, 5.0]], np.float32)
    np.testing.assert_allclose(Scale.of(values_ND)(values_ND), [[-1, 0, 0], [1, 0, 0]], atol=1e-6)


def rows_of(n, seed):
    random = np.random.default_rng(seed)
    inputs_ND = random.normal(size=(n, 5)).astype(np.float32)
    return Rows(inputs_ND, np.stack([inputs_ND[:, 0] > 0, inputs_ND[:, 1] * inputs_ND[:, 2] > 0], 1).astype(np.float32))


def test_heads_learn_survive_the_disk_and_repeat(tmp_path):
    def fit(**how):
        return fit_heads(rows_of(2000, 0), rows_of(500, 1), ("a", "b"), digest="abc", **how)

    heads, test = fit(), rows_of(500, 2)
    chances_NK = heads.predict(test.inputs_ND)
    assert auroc(test.labels_NK[:, 0], chances_NK[:, 0]) > 0.97
    assert auroc(test.labels_NK[:, 1], chances_NK[:, 1]) > 0.85  # no linear answer is better than chance
    linear_NK = fit(options={"hidden": 0}).predict(test.inputs_ND)
    assert 0.4 < auroc(test.labels_NK[:, 1], linear_NK[:, 1]) < 0.6
    np.testing.assert_array_equal(fit().predict(test.inputs_ND), chances_NK)
    heads.save(tmp_path)
    np.testing.assert_array_equal(FittedHeads.load(tmp_path, "abc").predict(test.inputs_ND), chances_NK)
    with pytest.raises(bseq.RunError, match="train them again"):
        FittedHeads.load(tmp_path, "another")
    raw = (tmp_path / "heads.safetensors").read_bytes()
    (tmp_path / "heads.safetensors").write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(bseq.RunError, match="damaged: .* save it again"):
        FittedHeads.load(tmp_path, "abc")
    with pytest.raises(bseq.RunError, match=r"no file .*heads\.safetensors"):
        FittedHeads.load(tmp_path / "nowhere", "abc")
    heads.save(tmp_path)
    assert FittedHeads.load(tmp_path, "abc").tasks == ("a", "b")
    with pytest.raises(bseq.UsageError, match="read 5 columns"):
        heads.predict(test.inputs_ND[:, :4])
    mixed = fit(head="mmoe", weighting="uncertainty").predict(test.inputs_ND)
    assert auroc(test.labels_NK[:, 1], mixed[:, 1]) > 0.8


def test_unknown_names():
    rows = rows_of(10, 0)
    with pytest.raises(bseq.UsageError, match="unknown binary head 'tree'; there are: mlp, mmoe"):
        fit_heads(rows, rows, ("a", "b"), digest="", head="tree")
    with pytest.raises(bseq.RecipeError, match="hiden"):
        fit_heads(rows, rows, ("a", "b"), digest="", options={"hiden": 3})
    with pytest.raises(bseq.UsageError, match="weighting = 'by hand'"):
        fit_heads(rows, rows, ("a", "b"), digest="", weighting="by hand")
    with pytest.raises(bseq.UsageError, match="one column a task"):
        fit_heads(rows, rows, ("a",), digest="")


@pytest.fixture
def question(habit_run, habit_items):
    model = bseq.InterestModel.from_run(habit_run.path)
    tasks = ["churn:7", "purchase:7:group=g1"]
    return Question.of(model, habit_run.sequences(), tasks, items=habit_items)


def test_propensities_find_who_stopped_and_who_buys_what(question):
    """Every other day or never again: churn is plain; and everybody keeps to a group of items."""
    found = fit_propensities(question)
    quality = found.quality.set_index("task")["auroc"]
    assert quality["churn:7"] > 0.97
    assert quality["purchase:7:group=g1"] > 0.85  # a tenth of what anybody buys is of any group
    scores = score(question, found.heads)
    assert scores["at"].nunique() == 1
    of_group = scores.set_index("user_id")["purchase:7:group=g1"]
    assert of_group[of_group.index % 4 == 1].min() > of_group[of_group.index % 4 == 2].max()
    # the vector alone tells the groups apart, though it can't see how long ago the last event was
    alone = fit_propensities(question, inputs="vector").quality.set_index("task")
    assert alone["auroc"]["purchase:7:group=g1"] > 0.85


def test_no_training_window_reaches_the_instant_of_judgement(question):
    instants = question.instants()
    assert instants.validation_us == question.log_end_us - 7 * DAY_US
    assert max(instants.train_us) + 7 * DAY_US <= instants.validation_us
    assert min(instants.train_us) > question.model.trained_until_us
    assert np.diff(instants.train_us).tolist() == [7 * DAY_US] * (len(instants.train_us) - 1)


def test_asked_about_an_earlier_instant_nothing_from_then_on_is_learned(question, habit_run):
    model, log = question.model, question.log
    at_us = int(log.timestamps.max()) + 1 - 8 * DAY_US
    asked, blind = (Question.of(model, one, ["churn:7"], until_us=at_us) for one in (log, log.between(None, at_us)))
    assert asked.log_end_us == blind.log_end_us == at_us
    instants = asked.instants()
    assert max(*instants.train_us, instants.validation_us) + 7 * DAY_US <= at_us
    tables = [score(one, fit_propensities(one).heads, at_us) for one in (asked, blind)]
    pd.testing.assert_frame_equal(*tables)


def test_values_are_money(question):
    """Counts know what was spent; an event without a value is worth nothing."""
    log = question.log
    worth = [np.where(log.user_index == 0, factor, 1.0) for factor in (1.0, np.nan, 100.0)]
    logs = [replace(log, values=values) for values in worth]
    users = np.arange(log.n_users)
    found = [replace(question, log=one).inputs(question.log_end_us, users, "counts") for one in logs]
    plain = replace(question, log=replace(log, values=None)).inputs(question.log_end_us, users, "counts")
    assert found[0].shape[1] > plain.shape[1]
    assert not np.array_equal(found[0][0], found[2][0])
    for other in found[1:]:
        np.testing.assert_array_equal(found[0][1:], other[1:])
        assert np.isfinite(other[0]).any()


def test_bad_questions(question, habit_run):
    model, log = question.model, question.log
    with pytest.raises(bseq.SchemaError, match="split = 'time'"):
        Question.of(model, log, ["churn:30"]).instants()
    assert Question.of(model, log, ["churn:30"], allow_future_model=True).instants().train_us
    with pytest.raises(bseq.UsageError, match="twice"):
        Question.of(model, log, ["churn:7", "churn:7.0"])
    with pytest.raises(bseq.UsageError, match="there is no task"):
        Question.of(model, log, [])
    with pytest.raises(bseq.SchemaError, match="answers in training are yes"):
        fit_propensities(Question.of(model, log.where(log.user_index % 4 != 3), ["purchase:7"], active_days=7))
    with pytest.raises(bseq.UsageError, match="inputs = 'all'"):
        fit_propensities(question, inputs="all")
    other = Question.of(model, log, ["churn:7"])
    with pytest.raises(bseq.UsageError, match="for another model or question"):
        score(question, fit_propensities(other).heads)
    untimed = bseq.Sequences(log.user_ids, log.offsets, log.items)
    with pytest.raises(bseq.SchemaError, match="times"):
        Question.of(model, untimed, ["churn:7"])
    at_one_instant = bseq.Sequences(log.user_ids, log.offsets, log.items, np.full(log.n_events, log.timestamps.max()))
    with pytest.raises(bseq.SchemaError, match="two windows"):
        fit_propensities(Question.of(model, at_one_instant, ["churn:7"]))


def test_the_command(command, habit_run, habit_items, tmp_path):
    habit_items.to_parquet(tmp_path / "items.parquet")
    out, told = tmp_path / "scores.parquet", tmp_path / "quality.json"
    code, printed, err = command(
        "score", habit_run.path, "--task", "churn:7", "--task", "purchase:7:group=g1", "--items",
        tmp_path / "items.parquet", "--out", out, "--json", told, "--save-heads", tmp_path / "heads",
    )  # fmt: skip
    assert code == 0, err
    assert "churn:7" in printed
    scores = pd.read_parquet(out)
    assert list(scores.columns) == ["user_id", "at", "churn:7", "purchase:7:group=g1"]
    assert scores["churn:7"].between(0, 1).all()
    assert json.loads(told.read_text())["quality"][0]["auroc"] > 0.95
    assert (tmp_path / "heads" / "heads.safetensors").is_file()
    code, _, err = command("score", habit_run.path, "--task", "churn:99", "--out", tmp_path / "no.parquet")
    assert code == 2
    assert "two windows" in err
    assert not (tmp_path / "no.parquet").exists()
    (tmp_path / "key").write_bytes(b"k" * 32)
    for asked in (["score", habit_run.path, "--task", "churn:7"], ["segments", habit_run.path]):
        code, _, err = command(*asked, "--pseudonymise", tmp_path / "key", "--out", tmp_path / "no.parquet")
        assert code == 2
        assert "train with --pseudonymise" in err
    deep = ["--task", "churn:7", "--out", tmp_path / "new" / "folder" / "scores.parquet"]
    code, _, err = command("score", habit_run.path, *deep, "--save-heads", out)
    assert code == 2
    assert "is a file" in err
    code, _, err = command("score", habit_run.path, *deep, "--save-heads", out / "below")
    assert code == 2
    assert "can't be written" in err
    assert not deep[-1].exists()  # it was refused before the work
    assert command("score", habit_run.path, *deep)[0] == 0
    assert len(pd.read_parquet(deep[-1])) == len(scores)
