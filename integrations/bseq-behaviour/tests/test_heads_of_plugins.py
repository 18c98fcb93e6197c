"""Heads that come from outside, one of each kind: what asks for them by name really uses them."""

import json
import types

import bseq_behaviour as behaviour
import numpy as np
import pandas as pd
import pytest
import torch
from bseq_behaviour import heads as builtin
from bseq_behaviour.contract.choice import HeadChoice
from bseq_behaviour.contract.registry import HeadManager
from bseq_behaviour.demand.demand import RECENT_WEEKS, user_demand
from bseq_behaviour.demand.forecast_demand import forecast_demand
from bseq_behaviour.multitask.fit_multitask import fit_multitask
from bseq_behaviour.multitask.moments import Objectives, moment
from bseq_behaviour.next_k.fit_next_k import fit_next_k
from bseq_behaviour.next_k.futures import futures
from bseq_behaviour.next_k.judge_next_k import rank_next_k
from bseq_behaviour.next_k.paths import beam_search, sample_paths
from bseq_behaviour.propensity.labels import WEEK_US
from bseq_behaviour.propensity.propensities import Question, fit_propensities
from bseq_behaviour.propensity.tasks import Task
from bseq_behaviour.testing.heads import BinaryHeadTests, CatalogueHeadTests, CountHeadTests
from bseq_behaviour.testing.sequence_heads import SequenceHeadTests
from instants import DAY_US
from torch.nn import functional as F

import bseq_plugin as bseq


class ScaledOptions(bseq.PartOptions):
    factor: float = 1.0


class Linear(behaviour.BinaryHead):
    """A linear answer, times a setting."""

    name, Options = "scaled", ScaledOptions

    def __init__(self, dim, n_tasks, options=None):
        super().__init__(dim, n_tasks, options)
        self.linear = torch.nn.Linear(dim, n_tasks)

    def forward(self, vectors_ND):
        return self.options.factor * self.linear(vectors_ND)


class Opposite(behaviour.CatalogueHead):
    """Everything the user is not."""

    name = "opposite"

    def forward(self, interests_BKD):
        return -interests_BKD


class Softplus(behaviour.CountHead):
    """Rates grow linearly, not exponentially."""

    name, Options = "scaled", ScaledOptions  # a name that a head of another kind has too

    def __init__(self, dim, usual_C, options=None):
        super().__init__(dim, usual_C, options)
        self.linear = torch.nn.Linear(dim, len(usual_C))

    def forward(self, vectors_ND, recent_NC):
        return self.options.factor * F.softplus(self.linear(vectors_ND)) + 1e-6


class TripleRecent(behaviour.CountHead):
    """Three times what was taken lately, whatever comes."""

    name = "triple"

    def __init__(self, dim, usual_C, options=None):
        super().__init__(dim, usual_C, options)
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, vectors_ND, recent_NC):
        return 3 * recent_NC + 1e-9 + 0 * self.unused


class Recurrent(behaviour.SequenceHead):
    """A GRU cell over the steps, begun at the mean state."""

    name = "recurrent"

    def __init__(self, state_dim, item_vectors_VD, n_event_types, n_steps, options=None):
        super().__init__(state_dim, item_vectors_VD, n_event_types, n_steps, options)
        width = item_vectors_VD.shape[1]
        self.begin, self.gru = torch.nn.Linear(state_dim, 32), torch.nn.GRU(width + width, 32, batch_first=True)
        self.types = torch.nn.Embedding(n_event_types + 1, width)
        self.out, self.of_types = torch.nn.Linear(32, width), torch.nn.Linear(32, n_event_types + 1)

    def forward(self, memory, items_BJ, types_BJ):
        self.check_steps(items_BJ)
        there = (~memory.padded_BM).float()[..., None]
        mean = (memory.states_BMS * there).sum(1) / there.sum(1).clamp_min(1)
        before = F.pad(self.item_vectors_VD[items_BJ][:, :-1], (0, 0, 1, 0))
        of_types = F.pad(self.types(types_BJ)[:, :-1], (0, 0, 1, 0))
        hidden = torch.zeros(0, items_BJ.shape[1], 32)
        if len(mean):
            hidden = self.gru(torch.cat([before, of_types], 2), self.begin(mean)[None])[0]
        logits = (memory.interest_BD[:, None] + self.out(hidden)) @ self.item_vectors_VD.T
        unknown = torch.zeros(logits.shape[-1], dtype=torch.bool)
        unknown[0] = True
        return logits.masked_fill(unknown, -torch.inf), self.of_types(hidden)


class March(behaviour.SequenceHead):
    """Items 3, 4, 5 and so on, of type 1, whoever asks; it counts how often."""

    name = "march"

    def __init__(self, state_dim, item_vectors_VD, n_event_types, n_steps, options=None):
        super().__init__(state_dim, item_vectors_VD, n_event_types, n_steps, options)
        self.asked, self.height = 0, torch.nn.Parameter(torch.zeros(1))

    def forward(self, memory, items_BJ, types_BJ):
        self.check_steps(items_BJ)
        self.asked += 1
        (n_users, n_steps), n_rows = items_BJ.shape, len(self.item_vectors_VD)
        logits = (20 + self.height) * F.one_hot(torch.arange(n_steps) + 3, n_rows).expand(n_users, -1, -1)
        logits[..., 0] = -torch.inf
        type_logits = F.one_hot(torch.ones(n_users, n_steps, dtype=torch.int64), self.n_event_types + 1)
        return logits, type_logits.float() * self.height.exp()


class TestLinear(BinaryHeadTests):
    head, options = Linear, {"factor": 2.0}


class TestSoftplus(CountHeadTests):
    head = Softplus


class TestRecurrent(SequenceHeadTests):
    head, learning_rate = Recurrent, 0.01


class TestOpposite(CatalogueHeadTests):
    head = Opposite


@pytest.fixture(autouse=True)
def plugin(monkeypatch):
    """Beside the built-in parts, in this test alone."""
    manager, mine = HeadManager(), types.SimpleNamespace()

    def bseq_heads():
        return [Linear, Opposite, Softplus, TripleRecent, Recurrent, March]

    mine.bseq_heads = behaviour.hookimpl(bseq_heads)
    manager.register(builtin, "builtin")
    manager.register(mine, "mine", distribution="outside")
    monkeypatch.setattr("bseq_behaviour.contract.choice.head_manager", lambda: manager)
    return manager


@pytest.fixture(scope="module")
def model(habit_run):
    return bseq.InterestModel.from_run(habit_run.path)


@pytest.fixture(scope="module")
def log(habit_run):
    return habit_run.sequences()


@pytest.fixture(scope="module")
def group_V(model):
    return np.concatenate([[-1], model.vocabulary.item_ids // 10])


def test_the_listing_shows_them_by_kind(plugin):
    [mine] = [info for info in plugin.infos() if info.name == "mine"]
    assert {kind: names for kind, names in mine.parts.items() if names} == {
        "binary head": ["scaled"],
        "catalogue head": ["opposite"],
        "count head": ["scaled", "triple"],
        "sequence head": ["march", "recurrent"],
    }


def test_multitask_answers_with_them(model, log, group_V):
    tasks = tuple((task, task.counts(model.vocabulary, None)) for task in [Task.parse("churn:7")])
    objectives = Objectives(tasks, next_item=True, all_action_days=7.0, category_V=group_V, next_item_days=7.0)
    end_us = int(log.timestamps.max()) + 1
    parts = [moment(model, log, end_us - days * DAY_US, objectives, end_us) for days in (21, 14, 7)]
    heads = {"next_item": "opposite", "tasks": HeadChoice("scaled", {"factor": 0.5}), "demand": "triple"}
    task = fit_multitask(model, parts[:2], parts[2], objectives, heads=heads, epochs=1, batch_users=16).model
    part = parts[2].take(np.arange(5))
    with torch.no_grad():
        interests, inputs = task(part)
        assert torch.equal(task.queries("next_item", interests), -interests)
        assert not torch.equal(task.queries("all_action", interests), interests)  # the built-in one, which has learned
    answers = task.answers(part)
    assert isinstance(task.head, Linear)
    wanted = 0.5 * (inputs @ task.head.linear.weight.T + task.head.linear.bias)
    np.testing.assert_allclose(answers.logits_BK, wanted.detach(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(answers.rates_BC, 3 * part.recent_BC, atol=1e-6)
    assert part.recent_BC.sum() > 0


def test_a_forecast_is_that_of_the_count_head(model, log, group_V):
    found = forecast_demand(model, log, group_V, 4, head="triple")
    recent = user_demand(log, group_V, 4, found.at_us - RECENT_WEEKS * WEEK_US, RECENT_WEEKS)
    np.testing.assert_allclose(found.units_C, 3 * recent.sum(0) / RECENT_WEEKS, rtol=1e-4)
    assert found.units_C[0] > 0
    scaled = forecast_demand(model, log, group_V, 4, head="scaled", options={"factor": 2.0})
    assert not np.allclose(scaled.units_C, found.units_C, rtol=0.1)
    with pytest.raises(bseq.RecipeError, match="options of count head 'scaled': unknown key 'times'"):
        forecast_demand(model, log, group_V, 4, head="scaled", options={"times": 2.0})


def test_the_next_k_are_those_of_the_sequence_head(model, log):
    end_us = int(log.timestamps.max())
    train, test = (futures(model, log, end_us - days * DAY_US, 4, n_states=4) for days in (18, 9))
    decoder = fit_next_k(model, [train], 4, head="march", epochs=1)
    assert isinstance(decoder, March)
    assert decoder.asked > 0
    assert float(decoder.height.detach()) != 0  # it was trained
    memory = test.memory.take(torch.arange(2))
    for found in (beam_search(decoder, memory, 3, 2), sample_paths(decoder, memory, 3, 2)):
        assert found.items_BRJ[:, 0].tolist() == [[3, 4, 5]] * 2
        assert (found.types_BRJ[:, 0] == 1).all()
    ranked, types_BK = rank_next_k(decoder, test, 2, n_beams=2, n_samples=2)
    assert (ranked["beam"] == [3, 4]).all()
    assert (types_BK == 1).all()
    other = fit_next_k(model, [train], 4, head="recurrent", epochs=1)
    assert beam_search(other, memory, 4, 3).items_BRJ.shape == (2, 3, 4)


def test_propensities_and_the_commands_ask_for_them(command, model, log, habit_run, habit_items, tmp_path):
    question = Question.of(model, log, ["churn:7"])
    found = fit_propensities(question, head="scaled", options={"factor": 3.0})
    assert isinstance(found.heads.head, Linear)
    out, told, items = tmp_path / "out.parquet", tmp_path / "told.json", tmp_path / "items.parquet"
    habit_items.to_parquet(items)
    demand = ["demand", habit_run.path, "--items", items, "--category", "group", "--out", out]
    code, _, err = command(*demand, "--head", "triple", "--json", told)
    assert code == 0, err
    assert json.loads(told.read_text())["head"] == "triple"
    expected = forecast_demand(model, log, np.concatenate([[-1], model.vocabulary.item_ids // 10]), 4, head="triple")
    units = pd.read_parquet(out).sort_values("category")["units"]
    np.testing.assert_allclose(units, expected.units_C, rtol=1e-5)
    for asked, error in (
        ((*demand, "--head", "march"), "unknown count head 'march'; there are: kept_share, log_linear, scaled, triple. "
                                       "'march' is a sequence head"),
        ((*demand, "--head-option", "factor"), "--head-option 'factor': write key=value"),
        ((*demand, "--head-option", " =5"), "--head-option ' =5': write key=value, for example n_experts=8"),
        (("score", habit_run.path, "--task", "churn:7", "--out", out, "--head", "scaled", "--head-option", "factor=x"),
         "options of binary head 'scaled': factor = 'x'"),
    ):  # fmt: skip
        code, _, err = command(*asked)
        assert code == 2
        assert error in " ".join(err.split())
