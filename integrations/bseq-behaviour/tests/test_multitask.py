"""Several objectives and one encoder: what followed an instant, each loss by hand, and learning together."""

import numpy as np
import pandas as pd
import pytest
import torch
from bseq_behaviour.contract.choice import HeadChoice
from bseq_behaviour.multitask.fit_multitask import fit_multitask
from bseq_behaviour.multitask.moments import Objectives, moment
from bseq_behaviour.multitask.multitask import MultiTask
from bseq_behaviour.propensity.curves import auroc
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
    tasks = [Task.parse(text) for text in ("churn:7", "purchase:7:group=g1")]
    group_V = np.concatenate([[-1], model.vocabulary.item_ids // 10])
    pairs = tuple((task, task.counts(model.vocabulary, habit_items)) for task in tasks)
    return Objectives(pairs, next_item=True, all_action_days=7.0, category_V=group_V, next_item_days=7.0)


@pytest.fixture(scope="module")
def moments(model, log, objectives):
    """Weekly instants after the model's training: all but the last for training, the last to judge."""
    end_us = int(log.timestamps.max()) + 1
    last = end_us - 7 * DAY_US
    return [moment(model, log, last - place * 7 * DAY_US, objectives, end_us) for place in (3, 2, 1, 0)]


def test_a_moment_is_what_a_loop_over_the_log_finds(model, log, objectives, habit_frame):
    end_us = int(log.timestamps.max()) + 1
    at_us = end_us - 9 * DAY_US
    found = moment(model, log, at_us, objectives, end_us)
    times = habit_frame["timestamp"].astype("datetime64[us, UTC]").astype("int64")
    offsets, rows = found.targets
    for place in range(0, found.histories.n_users, 7):
        user = found.histories.user_ids[place]
        own = habit_frame[habit_frame["user_id"] == user]
        later = own[times[own.index] >= at_us]
        week = later[times[later.index] < at_us + 7 * DAY_US]
        wanted = 0 if week.empty else model.vocabulary.item_rows(week["item_id"].head(1))[0]
        assert found.next_B[place] == wanted
        expected = set(model.vocabulary.item_rows(week["item_id"]).tolist()) if len(week) else set()
        assert set(rows[offsets[place] : offsets[place + 1]].tolist()) == expected
        assert found.labels_BK[place, 0] == week.empty
        assert found.labels_BK[place, 1] == (week["item_id"] // 10 == 1).any()
        assert found.units_BC[place].tolist() == [(week["item_id"] // 10 == group).sum() for group in range(4)]
        before = times[own.index]
        lately = own[(before < at_us) & (before >= at_us - 56 * DAY_US)]
        assert found.recent_BC[place].tolist() == [(lately["item_id"] // 10 == group).sum() / 8 for group in range(4)]


def test_what_is_read_is_of_the_past_alone(model, log, objectives):
    end_us = int(log.timestamps.max()) + 1
    at_us = end_us - 9 * DAY_US
    cut = log.where((log.timestamps < at_us) | (log.user_index % 2 == 0))  # half the users have no future
    whole, part = (moment(model, one, at_us, objectives, end_us) for one in (log, cut))
    np.testing.assert_array_equal(whole.histories.items, part.histories.items)
    np.testing.assert_array_equal(whole.context_BX, part.context_BX)
    assert (whole.next_B != part.next_B).any()
    with pytest.raises(bseq.SchemaError, match="ends after the log does"):
        moment(model, log, end_us - 6 * DAY_US, objectives, end_us)
    with pytest.raises(bseq.SchemaError, match="nobody has an event before"):
        moment(model, log, int(log.timestamps.min()), objectives, end_us, allow_future_model=True)


def test_an_encoder_that_knows_what_came_is_not_asked(model, log, objectives):
    """Its interests of earlier instants hold answers."""
    end_us = int(log.timestamps.max()) + 1
    with pytest.raises(bseq.UsageError, match="know what came after"):
        moment(model, log, model.trained_until_us, objectives, end_us)
    assert moment(model, log, model.trained_until_us, objectives, end_us, allow_future_model=True).histories.n_users


def test_answers_in_batches_are_those_of_all_at_once(model, moments, objectives):
    """And their metrics those of the rows: AUROC of the logits, WAPE of the summed rates, NDCG of who has a target."""
    task = MultiTask(model, objectives, Scale.of(moments[0].context_BX))
    part = moments[-1]
    whole, parts = task.answers(part, 10**6), task.answers(part, 7)
    np.testing.assert_allclose(parts.logits_BK, whole.logits_BK, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(parts.rates_BC, whole.rates_BC, rtol=1e-4, atol=1e-5)
    found = whole.metrics()
    assert found["churn:7"] == auroc(part.labels_BK[:, 0], whole.logits_BK[:, 0])
    had_C = part.units_BC.sum(0)
    wanted = np.abs(whole.rates_BC.sum(0) - had_C).sum() / had_C.sum()
    assert found["demand"] == pytest.approx(wanted)
    there = part.next_B > 0
    assert np.isnan(whole.ndcg["next_item"]).tolist() == (~there).tolist()
    assert found["next_item"] == pytest.approx(whole.ndcg["next_item"][there].mean())
    users = np.flatnonzero(there)[[0, 0, 1]]
    with pytest.raises(bseq.SchemaError, match="no score can tell"):
        whole.metrics(users)
    with pytest.raises(bseq.SchemaError, match="next_item: nobody has a target"):
        whole.metrics(np.flatnonzero(~there))


def test_nothing_behind_the_window_is_learned(model, log, objectives):
    """What a training instant is asked about must not reach into the weeks that are judged later."""
    end_us = int(log.timestamps.max()) + 1
    at_us = end_us - 20 * DAY_US
    cut = log.between(None, at_us + objectives.window_us)
    whole, part = (moment(model, one, at_us, objectives, end_us) for one in (log, cut))
    for name in ("next_B", "labels_BK", "units_BC"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(part, name))
    np.testing.assert_array_equal(whole.targets[1], part.targets[1])
    assert Objectives(next_item=True).window_us == 28 * DAY_US


def test_taking_users_takes_all_that_is_theirs(moments):
    part = moments[0]
    users = np.array([5, 2, 2, 9])
    found = part.take(users)
    for place, user in enumerate(users):
        own, theirs = (
            rows[offsets[p] : offsets[p + 1]].tolist()
            for (offsets, rows), p in ((found.targets, place), (part.targets, user))
        )
        assert own == theirs
        assert found.histories.lengths[place] == part.histories.lengths[user]
    for name in ("units_BC", "recent_BC"):
        np.testing.assert_array_equal(getattr(found, name), getattr(part, name)[users])
    assert found.take(np.empty(0, np.int64)).histories.n_users == 0


def test_each_loss_by_hand(model, moments, objectives):
    """In the order of the names, from the logits of the model's own parts."""
    torch.manual_seed(0)
    task = MultiTask(model, objectives, Scale.of(moments[0].context_BX)).eval()
    for layer in (task.demand.linear, *(head.own for head in task.catalogue.values())):
        torch.nn.init.normal_(layer.weight, std=0.1)
    part = moments[0].take(np.arange(12))
    interests, inputs = task(part)
    log_softmax, log_softmax_all = (
        torch.log_softmax((interests[:, 0] + own(interests[:, 0])) @ task.item_vectors(part)[1:].T, dim=1)
        for own in (task.catalogue["next_item"].own, task.catalogue["all_action"].own)
    )
    following = [-log_softmax[user, row - 1] for user, row in enumerate(part.next_B) if row]
    offsets, rows = part.targets
    window = [-log_softmax_all[u, row - 1] for u in range(12) for row in rows[offsets[u] : offsets[u + 1]]]
    chances = torch.sigmoid(task.head(inputs))
    truth = torch.from_numpy(part.labels_BK)
    entropy = -(truth * chances.log() + (1 - truth) * (1 - chances).log()).mean(0)
    rates = task.demand.linear(inputs).exp()
    poisson = (rates - torch.from_numpy(part.units_BC) * rates.log()).mean()
    wanted = torch.stack([torch.stack(following).mean(), torch.stack(window).mean(), *entropy, poisson])
    torch.testing.assert_close(task.losses(part), wanted, rtol=1e-4, atol=1e-5)
    assert objectives.names == ("next_item", "all_action", "churn:7", "purchase:7:group=g1", "demand")


@pytest.mark.parametrize(
    ("heads", "weighting"),
    [({}, "equal"), ({"tasks": HeadChoice("mmoe", {"n_experts": 3}), "demand": "kept_share"}, "uncertainty")],
)
def test_all_objectives_are_learned_together(model, moments, objectives, heads, weighting):
    before = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    begun = MultiTask(model, objectives, Scale.of(moments[0].context_BX)).judge(moments[-1])
    fit = fit_multitask(
        model, moments[:-1], moments[-1], objectives, heads=heads, weighting=weighting, epochs=12, batch_users=16,
        learning_rate=1e-2, head_rate=1e-2,
    )  # fmt: skip
    found = fit.model.judge(moments[-1])
    assert found["churn:7"] > 0.95
    assert found["purchase:7:group=g1"] > 0.8
    assert found["demand"] < 0.5 < begun["demand"]
    assert found["all_action"] > 0.8 * begun["all_action"]
    assert fit.epoch >= 1
    for name, value in model.encoder.state_dict().items():  # what it began with is as it was
        assert torch.equal(value, before[name])


def test_one_objective_alone_learns_it(model, moments, log, objectives):
    alone = objectives.alone("churn:7")
    assert alone.names == ("churn:7",)
    end_us = int(log.timestamps.max()) + 1
    parts = [moment(model, log, end_us - place * 7 * DAY_US, alone, end_us) for place in (3, 2, 1)]
    fit = fit_multitask(model, parts[:-1], parts[-1], alone, epochs=8, batch_users=16, learning_rate=1e-2)
    assert list(fit.model.judge(parts[-1])) == ["churn:7"]
    assert fit.model.judge(parts[-1])["churn:7"] > 0.95
    recency = -parts[-1].context_BX[:, 0]
    assert auroc(parts[-1].labels_BK[:, 0], -recency) > 0.9  # nor is it hard: silence tells


def test_the_same_seed_gives_the_same_model(model, moments, objectives):
    fits = [fit_multitask(model, moments[:1], moments[-1], objectives, epochs=1, seed=seed) for seed in (0, 0, 1)]
    losses = {fit.loss for fit in fits}
    assert len(losses) == 2


def test_nothing_to_learn(model, moments, objectives):
    with pytest.raises(bseq.UsageError, match="nothing to learn"):
        _ = Objectives().names
    with pytest.raises(bseq.UsageError, match="0 instants"):
        fit_multitask(model, [], moments[0], objectives)
    with pytest.raises(bseq.UsageError, match="epochs = 0"):
        fit_multitask(model, moments[:1], moments[0], objectives, epochs=0)
    with pytest.raises(
        bseq.UsageError, match=r"heads of \['own'\]; name heads for some of \['next_item', 'all_action'"
    ):
        fit_multitask(model, moments[:1], moments[0], objectives, heads={"own": "mlp"})
    for answer, head, told in (
        ("tasks", "none", "unknown binary head 'none'; there are: mlp, mmoe"),
        ("demand", "mlp", "unknown count head 'mlp'; there are: kept_share, log_linear. 'mlp' is a binary head"),
        ("all_action", "transformer", "there are: interests, own_layer. 'transformer' is a sequence head"),
    ):
        with pytest.raises(bseq.UsageError, match=told):  # also where it is not asked
            fit_multitask(model, moments[:1], moments[0], objectives.alone("churn:7"), heads={answer: head})
    for answer, head in (("demand", "kept_share"), ("next_item", "interests"), ("all_action", "interests")):
        with pytest.raises(
            bseq.UsageError, match=rf"heads of \['{answer}'\], but the objectives have only \['tasks'\]: leave"
        ):
            fit_multitask(model, moments[:1], moments[0], objectives.alone("churn:7"), heads={answer: head})
    with pytest.raises(bseq.UsageError, match=r"heads of \['tasks'\], but the objectives have only \['demand'\]"):
        fit_multitask(model, moments[:1], moments[0], objectives.alone("demand"), heads={"tasks": "mmoe"})
    with pytest.raises(bseq.RecipeError, match="options of binary head 'mlp': unknown key 'width'"):
        fit_multitask(model, moments[:1], moments[0], objectives, heads={"tasks": HeadChoice("mlp", {"width": 3})})
    with pytest.raises(bseq.BseqError, match="lower learning_rate"):
        fit_multitask(model, moments[:1], moments[0], objectives, learning_rate=1e30, head_rate=1e30, epochs=2)
    with pytest.raises(bseq.UsageError, match="weighting"):
        fit_multitask(model, moments[:1], moments[0], objectives, weighting="mine")


def test_a_batch_in_which_nobody_buys_anything_has_finite_gradients(model, moments, objectives):
    task = MultiTask(model, objectives, Scale.of(moments[0].context_BX))
    part = moments[0].take(np.flatnonzero(moments[0].next_B == 0)[:3])
    loss = task.losses(part).sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in task.parameters() if p.grad is not None)
    assert pd.isna(part.labels_BK).sum() == 0


def test_an_important_objective_is_learned_at_the_cost_of_the_others(model, moments, objectives):
    scale = Scale.of(moments[0].context_BX)
    task = MultiTask(model, objectives, scale, importance={"demand": 3.0, "churn:7": 0.5}).eval()
    losses, names = task.losses(moments[0]), objectives.names
    wanted = sum(
        {"demand": 3.0, "churn:7": 0.5}.get(name, 1.0) * loss for name, loss in zip(names, losses, strict=True)
    )
    assert float(task.total(moments[0]).detach()) == pytest.approx(float(wanted.detach()), rel=1e-6)
    learned = []
    for weight in (1e-4, 10.0):
        asked = {"next_item": weight, "all_action": weight}
        fit = fit_multitask(model, moments[:2], moments[-1], objectives, epochs=3, importance=asked)
        learned.append(fit.model.losses(moments[0]))
    for name in ("next_item", "all_action"):
        assert learned[1][names.index(name)] < learned[0][names.index(name)]


@pytest.mark.parametrize(
    "asked", [{"demnad": 1.0}, {"demand": 0.0}, {"demand": float("inf")}, {"demand": float("nan")}]
)
def test_importance_is_of_objectives_that_there_are(model, moments, objectives, asked):
    with pytest.raises(bseq.UsageError, match="importance"):
        fit_multitask(model, moments[:1], moments[-1], objectives, importance=asked)
