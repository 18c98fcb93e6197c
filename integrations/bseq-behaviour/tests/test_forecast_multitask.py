"""Several futures of everybody: what is said of now, by the same steps by hand; the file; the command."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from bseq_behaviour.categories import item_codes
from bseq_behaviour.multitask.fit_multitask import fit_multitask
from bseq_behaviour.multitask.forecast_multitask import forecast_multitask
from bseq_behaviour.multitask.moments import Objectives, moment, moment_without_answers
from bseq_behaviour.multitask.multitask import MultiTask
from bseq_behaviour.multitask.multitask_file import load_multitask, save_multitask
from bseq_behaviour.propensity.inputs import Scale
from bseq_behaviour.propensity.tasks import Task
from instants import DAY_US

import bseq_plugin as bseq


@pytest.fixture(scope="module")
def model(habit_run):
    return bseq.InterestModel.from_run(habit_run.path)


@pytest.fixture(scope="module")
def log(habit_run):
    return habit_run.sequences()


@pytest.fixture(scope="module")
def objectives(model, habit_items):
    tasks = [Task.parse(text) for text in ("churn:7", "purchase:7:group=g1", "purchase:3:event_type=buy")]
    code_V, _ = item_codes(model.vocabulary, habit_items, "group")
    return Objectives(
        tuple((task, task.counts(model.vocabulary, habit_items)) for task in tasks), True, 7.0, code_V, 7.0
    )


@pytest.fixture(scope="module")
def forecast(model, log, objectives):
    heads = {"tasks": "mmoe"}
    return forecast_multitask(model, log, objectives, heads=heads, weighting="uncertainty", epochs=2, k=5, seed=3)


def test_what_is_known_is_that_of_a_moment_and_no_answer_is(model, log, objectives):
    end_us = int(log.timestamps.max()) + 1
    at_us = end_us - 9 * DAY_US
    whole = moment(model, log, at_us, objectives, end_us)
    known = moment_without_answers(model, log.between(None, at_us), at_us, objectives)
    for name in ("users", "context_BX", "recent_BC", "priors_VP"):
        np.testing.assert_array_equal(getattr(known, name), getattr(whole, name))
    np.testing.assert_array_equal(known.histories.items, whole.histories.items)
    assert not known.next_B.any()
    assert not known.targets[0].any()
    assert np.isnan(known.labels_BK).all()
    assert np.isnan(known.units_BC).all()
    assert known.units_BC.shape == whole.units_BC.shape


def test_predictions_are_the_answers_without_a_look_at_what_came(model, log, objectives):
    end_us = int(log.timestamps.max()) + 1
    part = moment(model, log, end_us - 7 * DAY_US, objectives, end_us)
    torch.manual_seed(0)
    task = MultiTask(model, objectives, Scale.of(part.context_BX))
    torch.nn.init.normal_(task.catalogue["all_action"].own.weight)
    said, answers = task.predict(part, 4, batch_users=7), task.answers(part)
    np.testing.assert_allclose(said.chances_BK, 1 / (1 + np.exp(-answers.logits_BK)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(said.rates_BC, answers.rates_BC, rtol=1e-4)
    with torch.no_grad():
        interests_BKD, _ = task(part)
        for name, top_BK in said.top.items():
            scores_BV = (task.queries(name, interests_BKD) @ task.item_vectors(part)[1:].T).amax(1)
            assert top_BK.tolist() == (1 + scores_BV.topk(4, dim=1).indices).tolist()
    blind = replace(part, labels_BK=np.full_like(part.labels_BK, np.nan), next_B=np.zeros_like(part.next_B))
    np.testing.assert_array_equal(task.predict(blind, 4, 7).chances_BK, said.chances_BK)


def test_the_forecast_is_what_its_steps_by_hand_are(model, log, objectives, forecast):
    """The latest instant with answers is for judging; training windows end before it."""
    end_us = int(log.timestamps.max()) + 1
    held_us, train_us = end_us - 7 * DAY_US, []
    instant = held_us - 7 * DAY_US
    while instant > model.trained_until_us:
        train_us.insert(0, instant)
        instant -= 7 * DAY_US
    assert (forecast.instants.train_us, forecast.instants.validation_us) == (tuple(train_us), held_us)
    *train, held = (moment(model, log, us, objectives, end_us) for us in (*train_us, held_us))
    how = {"heads": {"tasks": "mmoe"}, "weighting": "uncertainty", "epochs": 2, "seed": 3}
    fit = fit_multitask(model, train, held, objectives, **how)
    assert forecast.quality == fit.model.judge(held)
    assert set(forecast.quality) == set(objectives.names)
    now = moment_without_answers(model, log, end_us, objectives)
    said = fit.model.predict(now, 5)
    assert forecast.users["user_id"].tolist() == log.user_ids[now.users].tolist()
    assert (forecast.users["at"] == pd.Timestamp(end_us, unit="us", tz="UTC")).all()
    np.testing.assert_array_equal(forecast.users[[task.name for task, _ in objectives.tasks]], said.chances_BK)
    np.testing.assert_allclose(forecast.units_C, said.rates_BC.sum(0))
    rows = forecast.items.set_index(["objective", "user_id"]).sort_index()
    for name, top_BK in said.top.items():
        for place in range(0, len(now.users), 11):
            own = rows.loc[(name, log.user_ids[now.users[place]])]
            assert own["rank"].tolist() == [1, 2, 3, 4, 5]
            assert own["item_id"].tolist() == model.vocabulary.item_ids[top_BK[place] - 1].tolist()


def test_a_saved_model_says_the_same(model, log, forecast, tmp_path):
    path = tmp_path / "new" / "multitask.safetensors"
    save_multitask(forecast.fit.model, path)
    loaded = load_multitask(path, model)
    assert loaded.objectives.names == forecast.fit.model.objectives.names
    part = moment_without_answers(model, log, forecast.instants.validation_us, loaded.objectives)
    ours, theirs = (task.predict(part, 3) for task in (forecast.fit.model, loaded))
    np.testing.assert_array_equal(ours.chances_BK, theirs.chances_BK)
    np.testing.assert_array_equal(ours.rates_BC, theirs.rates_BC)
    assert {name: top.tolist() for name, top in ours.top.items()} == {k: v.tolist() for k, v in theirs.top.items()}
    # what it is asked, too: the losses need the events that count, and the weights of the objectives
    end_us = int(log.timestamps.max()) + 1
    held = moment(model, log, forecast.instants.validation_us, loaded.objectives, end_us)
    with torch.no_grad():
        assert float(loaded.total(held)) == float(forecast.fit.model.total(held))


def test_a_saved_model_that_does_not_belong_is_refused(model, forecast, tmp_path):
    path = tmp_path / "multitask.safetensors"
    save_multitask(forecast.fit.model, path)
    fewer = model.with_items(np.arange(model.vocabulary.n_items - 1))
    with pytest.raises(bseq.RunError, match="began with model .*: train it again"):
        load_multitask(path, fewer)
    with pytest.raises(bseq.RunError, match="there is no file"):
        load_multitask(tmp_path / "none", model)
    bseq.save_sealed(path, {}, {"decoder": "{}"})
    with pytest.raises(bseq.RunError, match="not a file that save_multitask wrote"):
        load_multitask(path, model)


def test_weights_that_do_not_fit_are_told(model, forecast, tmp_path):
    path = tmp_path / "multitask.safetensors"
    save_multitask(forecast.fit.model, path)
    tensors, told = bseq.load_sealed(path, "save_multitask")
    tensors.pop("weights.norm.weight")
    bseq.save_sealed(path, tensors, told)
    with pytest.raises(bseq.RunError, match="do not fit their description"):
        load_multitask(path, model)


def test_what_can_not_be_forecast_is_refused_before_the_work(model, log, objectives, monkeypatch):
    monkeypatch.setattr(bseq.InterestModel, "encode", lambda *given: pytest.fail("the work has begun"))
    with pytest.raises(bseq.UsageError, match="k = 0"):
        forecast_multitask(model, log, objectives, k=0)
    with pytest.raises(bseq.UsageError, match="unknown binary head 'x'"):
        forecast_multitask(model, log, objectives, heads={"tasks": "x"})
    with pytest.raises(bseq.SchemaError, match="two windows of 28 days are needed"):
        forecast_multitask(model, log, Objectives(next_item=True))
    with pytest.raises(bseq.UsageError, match="all_action_days = 0"):
        Objectives(all_action_days=0.0)
    with pytest.raises(bseq.UsageError, match="there is nothing to learn"):
        forecast_multitask(model, log, Objectives())
    always = Task.parse("purchase:7")
    everybody = Objectives(((always, always.counts(model.vocabulary, None)),))
    with pytest.raises(bseq.SchemaError, match=r"task 'purchase:7': all \d+ answers"):
        forecast_multitask(model, log.take(np.flatnonzero(log.user_ids % 4 == 0)), everybody)


def test_the_command(command, habit_run, habit_items, model, tmp_path):
    habit_items.to_parquet(tmp_path / "items.parquet")
    out, ranked, units, told, saved = (
        tmp_path / name for name in ("users.parquet", "next.parquet", "units.parquet", "told.json", "multitask")
    )
    asked = ["multitask", habit_run.path, "--task", "churn:7", "--window-days", 7, "--epochs", 1]
    code, printed, err = command(
        *asked, "--items", tmp_path / "items.parquet", "--category", "group", "--head", "demand=kept_share",
        "--importance", "all_action=3", "--k", 3, "--out", out, "--items-out", ranked, "--units-out", units,
        "--json", told, "--save", saved,
    )  # fmt: skip
    assert code == 0, err
    for word in ("churn:7", "AUROC", "all_action", "NDCG@20", "demand", "WAPE"):
        assert word in printed
    users = pd.read_parquet(out)
    assert list(users.columns) == ["user_id", "at", "churn:7"]
    assert users["churn:7"].between(0, 1).all()
    items = pd.read_parquet(ranked)
    assert items.groupby("user_id").size().eq(3).all()
    assert set(items["objective"]) == {"all_action"}
    by_group = pd.read_parquet(units)
    assert sorted(by_group["category"]) == ["g0", "g1", "g2", "g3"]
    assert by_group["units"].is_monotonic_decreasing
    assert set(json.loads(told.read_text())["quality"]) == {"churn:7", "all_action", "demand"}
    assert load_multitask(saved, model).chosen["demand"].name == "kept_share"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "there is nothing to learn"),
        (["--task", "churn:7", "--task", "churn:7"], "a task is there twice"),
        (["--task", "churn:7", "--items-out", "next.parquet"], "--items-out needs an objective that has items"),
        (["--task", "churn:7", "--units-out", "units.parquet"], "--units-out needs --category"),
        (["--task", "churn:7", "--head", "mmoe"], "--head 'mmoe': write key=value, for example tasks=mmoe"),
        (["--task", "churn:7", "--importance", "churn:7=much"], "--importance churn:7=much: give a number"),
        (["--category", "group"], "needs an items table"),
    ],
)
def test_wrong_use_of_the_command(command, habit_run, tmp_path, given, said):
    code, _, err = command("multitask", habit_run.path, *given, "--out", tmp_path / "no.parquet")
    assert (code, said in " ".join(err.split())) == (2, True), err
    assert not (tmp_path / "no.parquet").exists()
