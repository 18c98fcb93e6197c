"""A head of a plugin that gives nonsense is named, wherever its answers come in: no wrong result goes out."""

import types

import bseq_behaviour as behaviour
import numpy as np
import pytest
import torch
from bseq_behaviour import heads as builtin
from bseq_behaviour.contract.choice import sequence_head
from bseq_behaviour.contract.registry import HeadManager
from bseq_behaviour.demand.demand import DemandModel, DemandRows, fit_demand
from bseq_behaviour.heads.catalogue import OwnLayerHead
from bseq_behaviour.heads.counts import KeptShareHead
from bseq_behaviour.heads.mlp import MlpHead
from bseq_behaviour.heads.transformer import TransformerHead
from bseq_behaviour.multitask.fit_multitask import fit_multitask
from bseq_behaviour.multitask.moments import ALL_ACTION, Objectives, moment
from bseq_behaviour.next_k.fit_next_k import fit_next_k
from bseq_behaviour.next_k.futures import futures
from bseq_behaviour.next_k.judge_next_k import rank_next_k
from bseq_behaviour.next_k.paths import beam_search, sample_paths
from bseq_behaviour.propensity.fit_heads import FittedHeads, Rows, fit_heads
from bseq_behaviour.propensity.inputs import Scale
from bseq_behaviour.propensity.tasks import Task
from instants import DAY_US

import bseq_plugin as bseq

NAN = float("nan")


def spoilt(base, spoil, **more):
    """A built-in head under another name, whose answers go through ``spoil``."""

    def forward(self, *given):
        return spoil(base.forward(self, *given))

    return type(base.__name__, (base,), {"name": "spoilt", "forward": forward} | more)


def of_steps(spoil):
    """``spoil`` for item logits, for ``step`` too."""

    def both(answers):
        return spoil(answers[0]), answers[1]

    def step(self, *given):
        return both(TransformerHead.step(self, *given))

    return spoilt(TransformerHead, both, step=step)


def opened(logits):
    logits = logits.clone()
    logits[..., 0] = 99.0
    return logits


@pytest.fixture
def heads(monkeypatch):
    """What a plugin gives beside the built-in heads: ``heads.append``."""
    manager, mine, given = HeadManager(), types.SimpleNamespace(), []

    def bseq_heads():
        return given

    mine.bseq_heads = behaviour.hookimpl(bseq_heads)
    manager.register(builtin, "builtin")
    manager.register(mine, "mine")
    monkeypatch.setattr("bseq_behaviour.contract.choice.head_manager", lambda: manager)
    return given


@pytest.fixture(scope="module")
def model(habit_run):
    return bseq.InterestModel.from_run(habit_run.path)


@pytest.fixture(scope="module")
def log(habit_run):
    return habit_run.sequences()


@pytest.fixture(scope="module")
def objectives(model):
    tasks = tuple((task, task.counts(model.vocabulary, None)) for task in [Task.parse("churn:7")])
    group_V = np.concatenate([[-1], model.vocabulary.item_ids // 10])
    return Objectives(tasks, all_action_days=7.0, category_V=group_V, next_item_days=7.0)


@pytest.fixture(scope="module")
def moments(model, log, objectives):
    end_us = int(log.timestamps.max()) + 1
    return [moment(model, log, end_us - days * DAY_US, objectives, end_us) for days in (14, 7)]


@pytest.fixture(scope="module")
def decoding(model, log):
    return futures(model, log, int(log.timestamps.max()) - 9 * DAY_US, 2, n_states=4)


def rows(n=40):
    random = np.random.default_rng(n)
    inputs = random.normal(size=(n, 4)).astype(np.float32)
    return Rows(inputs, np.stack([inputs[:, 0] > 0, inputs[:, 1] > 0], 1).astype(np.float32))


def demand_rows(n=40):
    random = np.random.default_rng(n)
    vectors, units = random.normal(size=(n, 4)), random.poisson(1.0, size=(n, 3))
    return DemandRows(vectors.astype(np.float32), np.ones((n, 3), np.float32), units.astype(np.float32))


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lambda logits: logits[:, 0], r"torch.float32 \(40,\)"),
        (lambda logits: logits[:, :1], r"torch.float32 \(40, 1\)"),
        (lambda logits: logits > 0, r"torch.bool \(40, 2\)"),
        (lambda logits: logits.detach().numpy(), "ndarray"),
    ],
)
def test_a_binary_head_of_another_answer(heads, spoil, found):
    heads.append(spoilt(MlpHead, spoil))
    with pytest.raises(bseq.PluginError, match=rf"binary head 'spoilt' gave {found}; wanted a float tensor \(40, 2\)"):
        fit_heads(rows(), rows(), ("a", "b"), digest="", head="spoilt")
    with pytest.raises(bseq.PluginError, match=f"binary head 'spoilt' gave {found}"):
        FittedHeads(heads[0](4, 2), Scale.of(rows().inputs_ND), ("a", "b"), "", "both").predict(rows().inputs_ND)


def test_chances_that_are_no_numbers():
    head = spoilt(MlpHead, lambda logits: logits * NAN)(4, 2)
    with pytest.raises(bseq.PluginError, match="binary head 'spoilt' gave NaN or infinity; wanted finite numbers"):
        FittedHeads(head, Scale.of(rows().inputs_ND), ("a", "b"), "", "both").predict(rows().inputs_ND)


def test_a_rate_too_high_is_no_fault_of_the_head():
    with pytest.raises(bseq.BseqError, match="lower learning_rate") as caught:
        fit_heads(rows(), rows(), ("a", "b"), digest="", learning_rate=float("inf"))
    assert not isinstance(caught.value, bseq.PluginError)


def own_loss(self, vectors_ND, recent_NC, units_NC):
    return ((self(vectors_ND, recent_NC) - units_NC) ** 2).mean()


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lambda rates: rates - 100, r"-9\d.*; wanted numbers of 0 or more"),
        (lambda rates: rates[:, :1], r"torch.float32 \(40, 1\); wanted a float tensor \(40, 3\)"),
        (lambda rates: rates * NAN, "NaN or infinity"),
    ],
)
def test_rates_that_can_not_be(heads, spoil, found):
    """A loss of the head's own may take them; the usual one looks at them."""
    heads.append(spoilt(KeptShareHead, spoil, loss=behaviour.CountHead.loss))
    if "NaN" not in found:
        with pytest.raises(bseq.PluginError, match=f"count head 'spoilt' gave {found}"):
            fit_demand(demand_rows(), demand_rows(), head="spoilt")
    own = spoilt(KeptShareHead, spoil, loss=own_loss)(4, torch.ones(3))
    with pytest.raises(bseq.PluginError, match=f"count head 'spoilt' gave {found}"):
        DemandModel(own, Scale.of(demand_rows().vectors_ND)).rates(demand_rows().vectors_ND, demand_rows().recent_NC)


def test_a_loss_that_is_no_scalar(heads):
    heads.append(spoilt(KeptShareHead, lambda rates: rates, loss=lambda self, *given: self(*given[:2])))
    with pytest.raises(bseq.PluginError, match=r"count head 'spoilt' gave .*\(40, 3\); wanted a float tensor \(\)"):
        fit_demand(demand_rows(), demand_rows(), head="spoilt")


@pytest.mark.parametrize(
    ("answer", "base", "spoil", "found"),
    [
        ("all_action", OwnLayerHead, lambda queries: queries[..., 1:], "catalogue head 'spoilt' gave torch.float32"),
        ("tasks", MlpHead, lambda logits: logits[:, 0], r"binary head 'spoilt' gave torch.float32 \(\d+,\)"),
        ("demand", KeptShareHead, lambda rates: rates[:, :1], r"count head 'spoilt' gave torch.float32 \(\d+, 1\)"),
        ("demand", KeptShareHead, lambda rates: rates - 100, "count head 'spoilt' gave -"),
    ],
)
def test_several_futures(heads, model, moments, objectives, answer, base, spoil, found):
    heads.append(spoilt(base, spoil, **({"loss": behaviour.CountHead.loss} if base is KeptShareHead else {})))
    with pytest.raises(bseq.PluginError, match=found):
        fit_multitask(model, moments[:1], moments[1], objectives, heads={answer: "spoilt"}, epochs=1)


@pytest.mark.parametrize("answer", ["all_action", "tasks", "demand"])
def test_answers_of_several_futures_that_are_no_numbers(model, moments, objectives, answer):
    task = fit_multitask(model, moments[:1], moments[1], objectives, epochs=1).model
    {"all_action": task.catalogue[ALL_ACTION], "tasks": task.head, "demand": task.demand}[answer].register_forward_hook(
        lambda head, given, found: found * NAN
    )
    with pytest.raises(bseq.PluginError, match="NaN or infinity"):
        task.answers(moments[1])


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (opened, r"the unknown item \(row 0\) as an answer; wanted -inf as its logit"),
        (lambda logits: logits[..., :-1], r"torch.float32 \(.*\); wanted a float tensor \("),
        (lambda logits: logits.where(logits < -1e9, NAN), "logits that are NaN or infinite"),
    ],
)
def test_steps_of_a_sequence_head(model, decoding, spoil, found):
    decoder = of_steps(spoil)(decoding.memory.states_BMS.shape[2], model.item_vectors_VD, 2, 2).eval()
    memory = decoding.memory.take(torch.arange(3))
    for search in (beam_search, sample_paths):
        with pytest.raises(bseq.PluginError, match=f"sequence head 'spoilt' gave {found}"):
            search(decoder, memory, 2, 2)
    with pytest.raises(bseq.PluginError, match=f"sequence head 'spoilt' gave {found}"):
        rank_next_k(decoder, decoding, 2, n_beams=2, n_samples=2)
    if "NaN" not in found:
        with pytest.raises(bseq.PluginError, match=f"sequence head 'spoilt' gave {found}"):
            decoder.loss(*decoding.take(torch.arange(3)))


def test_a_sequence_head_without_types_or_with_a_loss_that_is_no_scalar(heads, model, decoding):
    untyped = spoilt(TransformerHead, lambda answers: answers[0])
    heads += [untyped, spoilt(TransformerHead, tuple, name="wide", loss=lambda self, *given: self(*given)[1])]
    with pytest.raises(
        bseq.PluginError, match="sequence head 'spoilt' gave Tensor; wanted a tuple of item logits and type"
    ):
        fit_next_k(model, [decoding], 2, head="spoilt", epochs=1)
    with pytest.raises(bseq.PluginError, match=r"sequence head 'wide' gave .*; wanted a float tensor \(\)"):
        fit_next_k(model, [decoding], 2, head="wide", epochs=1)


def test_a_head_that_can_not_be_made_is_named(heads, model):
    class Narrow(behaviour.BinaryHead):
        name = "narrow"

        def __init__(self, dim):
            super().__init__(dim, 1)

        def forward(self, vectors_ND):
            return vectors_ND

    class Early(TransformerHead):
        name = "early"

        def __init__(self, *sizes):
            self.layer = torch.nn.Linear(1, 1)

    heads += [Narrow, Early]
    with pytest.raises(
        bseq.PluginError, match=r"binary head 'narrow' can't be made: TypeError: .*what BinaryHead's takes"
    ):
        fit_heads(rows(), rows(), ("a", "b"), digest="", head="narrow")
    with pytest.raises(bseq.PluginError, match="sequence head 'early' can't be made: AttributeError"):
        sequence_head("early", 4, model.item_vectors_VD, 0, 2)
