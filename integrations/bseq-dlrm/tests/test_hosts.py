"""Hosts of every kind that can be attached to, the next-item loss beside the clicks, and what is refused."""

from __future__ import annotations

import json

import bseq_dlrm
import pytest
import ranker_job as job
import torch
from bseq_dlrm import DLRMInterestTrain, DLRMWithInterest, NextItemLoss
from torch import distributed as dist
from torch import nn
from torchrec import KeyedJaggedTensor
from torchrec.models.deepfm import SimpleDeepFMNN
from torchrec.models.dlrm import DLRM, DLRM_DCN, DLRM_Projection, DLRMTrain, DLRMWrapper

import bseq_plugin as bseq
from bseq_plugin.testing.commands import command_of

command = command_of(bseq_dlrm, "dlrm")


@pytest.fixture(autouse=True, scope="module")
def one_process():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def manager():
    found = bseq.PluginManager()
    found.register(bseq_dlrm, "dlrm")
    return found


def encoders():
    """Two that read different histories of one batch."""
    return job.make_encoder("cpu"), job.make_encoder("cpu", item_keys=(), keys={"event": "search"})


def two_histories(seed, n=64):
    data, other = job.batch(seed, n), job.batch(seed + 1000, n, "search", ())
    data.history = KeyedJaggedTensor.concat([data.history, other.history])
    return data


def inputs(data):
    return data.dense_features, data.sparse_features, data.history


@pytest.mark.parametrize("kind", [DLRM, DLRM_DCN, DLRM_Projection, DLRMWrapper, SimpleDeepFMNN])
def test_attached_once_or_twice_it_gives_what_the_host_gave(manager, kind):
    host, data = job.make_host(kind, "cpu").eval(), two_histories(0)
    if kind is DLRMWrapper:  # reads a ModelInput
        wanted = DLRM.forward(host, data.dense_features, data.sparse_features)
    else:
        wanted = host(data.dense_features, data.sparse_features)
    first, second = encoders()
    once = bseq.attach(host, first, manager=manager)
    torch.testing.assert_close(once(*inputs(data)), wanted)
    twice = bseq.attach(once, second, frozen=True, manager=manager)
    torch.testing.assert_close(twice(*inputs(data)), wanted)
    assert (twice.interest, twice.earlier[0].interest) == (second, first)
    torch.testing.assert_close(once(*inputs(data)), wanted)  # as it was
    twice.train()
    assert (first.training, second.training) == (True, False)


def test_two_encoders_learn_under_the_pipeline(manager):
    torch.manual_seed(0)
    first = job.make_encoder(item_keys=())
    second = job.make_encoder(item_keys=(), keys={"event": "search"})
    host = bseq.attach(bseq.attach(job.make_host(DLRM), first, manager=manager), second, manager=manager)

    def make(seed):
        data, other = job.batch(seed, 128, "search", ()), job.batch(seed + 1000, 128, "event", ())
        data.history = KeyedJaggedTensor.concat([other.history, data.history])  # clicks are those of the searches
        return data

    _, pipeline, losses = job.train(DLRMInterestTrain(host), n_steps=60, make=make)
    assert len(pipeline._pipelined_modules) == 3
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_a_train_task_gives_a_train_task_with_its_loss(manager):
    host = DLRMTrain(job.make_host(DLRM, "cpu"))
    host.loss_fn = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.0))
    task, data = bseq.attach(host, job.make_encoder("cpu"), manager=manager), job.batch(0)
    assert (type(task), task.loss_fn) == (DLRMInterestTrain, host.loss_fn)
    logits = host.model(data.dense_features, data.sparse_features).squeeze(-1)
    torch.testing.assert_close(task(data)[0], host.loss_fn(logits, data.labels))


def test_probabilities_have_a_loss_of_probabilities(manager):
    host, data = job.make_host(SimpleDeepFMNN, "cpu"), job.batch(0)
    task = DLRMInterestTrain(bseq.attach(host, job.make_encoder("cpu"), manager=manager))
    given = host(data.dense_features, data.sparse_features).squeeze(-1)
    torch.testing.assert_close(task(data)[0], nn.functional.binary_cross_entropy(given, data.labels))


def test_a_host_with_a_forward_of_its_own_is_refused(manager):
    class Louder(DLRM):
        def forward(self, dense_features, sparse_features):
            return 2 * super().forward(dense_features, sparse_features)

    with pytest.raises(bseq.UsageError, match="Louder has a forward of its own, .* attach_interest"):
        bseq.attach(job.make_host(Louder, "cpu"), job.make_encoder("cpu"), manager=manager)


def test_a_host_that_attaches_by_itself_is_asked_first(manager):
    class Own(DLRM):
        def attach_interest(self, interest, frozen):
            return nn.ModuleList([interest.requires_grad_(not frozen), self])

    class Odd(nn.Module):
        def attach_interest(self, interest, frozen):
            return 3

    host, encoder = job.make_host(Own, "cpu"), job.make_encoder("cpu")
    attached = bseq.attach(host, encoder, frozen=True, manager=manager)
    assert (attached[0], attached[1]) == (encoder, host)
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    with pytest.raises(bseq.UsageError, match=r"Odd\.attach_interest gave a int, not a module"):
        bseq.attach(Odd(), encoder, manager=manager)
    with pytest.raises(bseq.UsageError, match=r"to a Linear; .* a model of your own needs a method attach_interest"):
        bseq.attach(nn.Linear(2, 2), encoder, manager=manager)


def test_the_loss_is_clicks_plus_the_weighted_next_item():
    torch.manual_seed(0)
    ranker, data = DLRMWithInterest(job.make_host(DLRM, "cpu"), job.make_encoder("cpu")), job.batch(0, 8)
    interest, vectors = ranker.interest.interest_and_items(data.history)
    scores = interest["user_interest"] @ torch.cat([vectors["target"], vectors["negative"]]).T
    targets, negatives = data.history["target"].values(), data.history["negative"].values()
    losses = []
    for user in range(8):
        others = scores[user, 8:][negatives != targets[user]]
        losses.append(torch.cat([scores[user, user][None], others]).logsumexp(0) - scores[user, user])
    clicks = DLRMInterestTrain(ranker)(data)[0]
    joint = DLRMInterestTrain(ranker, next_item_weight=0.1)(data)[0]
    torch.testing.assert_close(joint - clicks, 0.1 * torch.stack(losses).mean())


def test_users_may_have_no_target_or_several():
    ids, lengths = torch.tensor([4, 5, 9, 8]), torch.tensor([0, 2, 0, 2, 0, 0])
    history = KeyedJaggedTensor(["target", "negative"], ids, lengths=lengths)
    interest, target, negative = torch.randn(3, 4), torch.randn(2, 4), torch.randn(2, 4)
    scores = interest[1] @ torch.cat([target, negative]).T
    wanted = torch.stack([torch.cat([scores[i : i + 1], scores[2:]]).logsumexp(0) - scores[i] for i in (0, 1)]).mean()
    torch.testing.assert_close(NextItemLoss()(interest, target, negative, history), wanted)
    nobody = KeyedJaggedTensor(["target", "negative"], ids[2:], lengths=torch.tensor([0, 0, 0, 2, 0, 0]))
    assert float(NextItemLoss()(interest, target[:0], negative, nobody)) == 0.0
    with pytest.raises(bseq.UsageError, match="key 'negative' has no item in this batch"):
        NextItemLoss()(interest, target, negative[:0], history)


def test_a_next_item_weight_that_trains_nothing_is_refused():
    host = job.make_host(DLRM, "cpu")
    with pytest.raises(bseq.UsageError, match=r"needs the encoder's item_keys \['negative'\]; it has \['target'\]"):
        DLRMInterestTrain(DLRMWithInterest(host, job.make_encoder("cpu", item_keys=("target",))), 0.1)
    with pytest.raises(bseq.UsageError, match=r"trains nothing: the encoder is frozen"):
        DLRMInterestTrain(DLRMWithInterest(host, job.make_encoder("cpu"), frozen=True), 0.1)
    with pytest.raises(bseq.UsageError, match=r"this is a Linear with a NoneType"):
        DLRMInterestTrain(nn.Linear(2, 1), 0.1)
    with pytest.raises(bseq.UsageError, match=r"next_item_weight = -1; give 0 or more"):
        DLRMInterestTrain(DLRMWithInterest(host, job.make_encoder("cpu")), -1)


def test_bseq_plugins_says_what_a_plugin_attaches_to(command, manager, monkeypatch):
    monkeypatch.setattr("bseq_plugin.plugins.plugin_manager", lambda: manager)
    code, out, _ = command("plugins")
    assert code == 0
    row = " ".join(out.replace("│", " ").split())
    assert "attaches an encoder: TorchRec's DLRM, DLRM_DCN, DLRM_Projection, DLRMTrain, SimpleDeepFMNN;" in row
    [listed] = json.loads(command("plugins", "--json")[1])
    assert listed["attaches"].startswith("TorchRec's DLRM, DLRM_DCN")
