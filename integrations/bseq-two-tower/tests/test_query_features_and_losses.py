"""Kept query features, K candidates a user and in-batch negatives."""

from __future__ import annotations

import bseq_two_tower
import pytest
import torch
import two_tower_job as job
from bseq_two_tower import CandidateLoss, InBatchSoftmax, InterestTwoTower, InterestTwoTowerTrain, TwoTowerBatch
from torch import distributed as dist
from torch import nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor

import bseq_plugin as bseq

BOTH = ("user", "country")


@pytest.fixture(autouse=True, scope="module")
def one_process():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()
    torch.set_num_threads(before)


def features(n):
    one = torch.ones(2 * n, dtype=torch.int64)
    return KeyedJaggedTensor(list(BOTH), torch.arange(2 * n) % job.N_COUNTRIES, lengths=one)


def host_with(name):
    """A host whose only query feature is called so."""
    host = job.RetrievalHost()
    tables = [
        EmbeddingBagConfig(name=f"t_{key}", embedding_dim=job.DIM, num_embeddings=50, feature_names=[key])
        for key in (name, "item")
    ]
    host.ebc, host._feature_names_query = EmbeddingBagCollection(tables=tables), [name]
    return host


def test_attach_drops_a_lone_user_id_and_keeps_several_query_features():
    manager = bseq.PluginManager()
    manager.register(bseq_two_tower, "two_tower")
    alone = bseq.attach(job.RetrievalHost(), job.make_encoder("cpu"), manager=manager)
    assert (alone.query_names, alone.query_proj.in_features) == ([], job.DIM)
    host = job.RetrievalHost(features=BOTH)
    several = bseq.attach(host, job.make_encoder("cpu"), manager=manager)
    assert (several.query_names, several.query_proj.in_features) == (["user", "country"], 3 * job.DIM)
    for name in ("t_user", "t_country"):
        assert several.query_ebc.embedding_bags[name] is host.ebc.embedding_bags[name]
    del host._feature_names_query  # then all that is not a candidate's is the query's
    assert InterestTwoTower(host, job.make_encoder("cpu")).query_names == ["user", "country"]


@pytest.mark.parametrize("name", ["user", "userId", "user_id", "UID"])
def test_a_lone_user_id_is_dropped_whatever_its_case(name):
    assert InterestTwoTower(host_with(name), job.make_encoder("cpu")).query_names == []
    assert InterestTwoTower(host_with(name), job.make_encoder("cpu"), keep=[name]).query_names == [name]


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("name", ["country", "user_country", "hour"])
def test_a_lone_query_feature_that_is_not_the_user_id_is_kept(name, declared):
    torch.manual_seed(0)
    host, history = host_with(name), job.batch(0, "one", 8).history
    if not declared:
        del host._feature_names_query
    manager = bseq.PluginManager()
    manager.register(bseq_two_tower, "two_tower")
    model = bseq.attach(host, job.make_encoder("cpu"), manager=manager)
    assert model.query_names == [name]
    values = torch.arange(8) % job.N_COUNTRIES
    one, other = (model.query(history, job.ids(name, ids)) for ids in (values, values.flip(0)))
    assert not torch.allclose(one, other)
    with pytest.raises(bseq.UsageError, match=rf"reads \['{name}'\] as well: give query_features, or .* keep=\[\]"):
        model.query(history)


@pytest.mark.parametrize("keep", [["user", "country"], ["country"], ["user"]])
def test_kept_features_stand_behind_the_interest(keep):
    torch.manual_seed(0)
    host, data = job.RetrievalHost(features=BOTH), job.batch(0, "one", 8)
    model = InterestTwoTower(host, job.make_encoder("cpu"), keep=keep)
    query = model.query(data.history, features(8))
    found = host.ebc(KeyedJaggedTensor.concat([features(8), job.ids("item", torch.ones(8, dtype=torch.int64))]))
    interest = model.interest(data.history)["user_interest"]
    torch.testing.assert_close(query, model.query_proj(torch.cat([interest, *(found[name] for name in keep)], dim=1)))


def test_a_query_projection_of_ones_own():
    own = nn.Sequential(nn.Linear(2 * job.DIM, 8), nn.ReLU(), nn.Linear(8, job.WIDTH))
    host = job.RetrievalHost(features=BOTH)
    model = InterestTwoTower(host, job.make_encoder("cpu"), keep=["country"], query_proj=own)
    assert model.query_proj is own
    assert model.query(job.batch(0, "one", 8).history, features(8)).shape == (8, job.WIDTH)


def test_query_features_that_are_missing_stray_or_unknown_are_named():
    host, history = job.RetrievalHost(features=BOTH), job.batch(0, "one", 8).history
    with pytest.raises(bseq.UsageError, match=r"reads \['country'\] as well: give query_features"):
        InterestTwoTower(host, job.make_encoder("cpu"), keep=["country"]).query(history)
    with pytest.raises(bseq.UsageError, match=r"keeps no feature of the host"):
        InterestTwoTower(host, job.make_encoder("cpu"), keep=[]).query(history, features(8))
    with pytest.raises(bseq.UsageError, match=r"keep = \['town'\]: give a list .* has \['user', 'country'\]"):
        InterestTwoTower(host, job.make_encoder("cpu"), keep=["town"])
    with pytest.raises(bseq.UsageError, match="keep = 'country': give a list"):
        InterestTwoTower(host, job.make_encoder("cpu"), keep="country")


def test_a_table_shared_by_both_towers_is_cut_or_refused():
    host = job.RetrievalHost()
    shared = EmbeddingBagConfig(name="t", embedding_dim=job.DIM, num_embeddings=50, feature_names=["user", "item"])
    host.ebc = EmbeddingBagCollection(tables=[shared])
    model = InterestTwoTower(host, job.make_encoder("cpu"))
    assert [config.feature_names for config in model.candidate_ebc.embedding_bag_configs()] == [["item"]]
    with pytest.raises(bseq.UsageError, match="table 't' is read by query feature 'user' and candidate feature 'item'"):
        InterestTwoTower(host, job.make_encoder("cpu"), keep=["user"])


def test_kept_features_are_pipelined_too():
    torch.manual_seed(0)
    model = InterestTwoTower(job.RetrievalHost("meta", BOTH), job.make_encoder(), keep=["country"])
    task = InterestTwoTowerTrain(model, InBatchSoftmax())
    _, pipeline, losses = job.train(task, "table_wise", "row_wise_adagrad", "in_batch", 30)
    assert len(pipeline._pipelined_modules) == 3
    assert losses[-1] < 0.6 * losses[0]


def scored(labels, n_candidates, log_q=None, ids=None, key="item"):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(3, 5, generator=generator)
    candidate = torch.randn(n_candidates, 5, generator=generator)
    history = KeyedJaggedTensor(["event"], torch.ones(3, dtype=torch.int64), lengths=torch.ones(3, dtype=torch.int64))
    rows = job.ids(key, torch.arange(n_candidates) if ids is None else ids)
    return query, candidate, TwoTowerBatch(history, rows, labels, None, log_q)


def test_the_loss_of_several_candidates_is_that_of_each():
    labels = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    query, candidate, data = scored(labels, 6)
    loss, logits, _ = CandidateLoss()(query, candidate, data)
    wanted = torch.stack([query[row // 2] @ candidate[row] for row in range(6)])
    torch.testing.assert_close(logits, wanted.view(3, 2))
    torch.testing.assert_close(loss, nn.functional.binary_cross_entropy_with_logits(wanted, labels.flatten()))


def test_the_same_item_elsewhere_is_no_negative_and_log_q_is_taken_off():
    log_q = torch.tensor([-1.0, -2.0, -1.0])
    labels = torch.tensor([1.0, 1.0, 0.0])
    query, candidate, data = scored(labels, 3, log_q, torch.tensor([7, 8, 7]))
    loss, logits, own = InBatchSoftmax(temperature=0.5)(query, candidate, data)
    wanted = 2 * query @ candidate.T - log_q
    wanted[0, 2] = wanted[2, 0] = float("-inf")
    torch.testing.assert_close(logits, wanted)
    torch.testing.assert_close(loss, -(wanted[0].log_softmax(0)[0] + wanted[1].log_softmax(0)[1]) / 2)
    assert own.tolist() == [0, 1, 2]


REFUSED = [
    (CandidateLoss(), torch.ones(3), 6, {}, r"3 histories, 6 candidates and labels \(3,\) don't fit"),
    (CandidateLoss(), torch.ones(2, 3), 6, {}, r"3 histories, 6 candidates and labels \(2, 3\) don't fit"),
    (InBatchSoftmax(), torch.ones(3), 6, {}, r"given: histories \[3\], candidates \[6\], labels \[3\]"),
    (InBatchSoftmax(), torch.ones(3, 1), 3, {}, r"labels \[3, 1\]"),
    (InBatchSoftmax(), torch.ones(3), 3, {"log_q": torch.ones(6)}, r"log_q \[6\]"),
    (CandidateLoss(), torch.ones(6, dtype=torch.int64), 6, {}, r"labels are torch.int64; give float32: labels.float"),
    (CandidateLoss(), torch.ones(3, dtype=torch.bool), 3, {}, "labels are torch.bool; give float32"),
    (CandidateLoss(), torch.ones(3, dtype=torch.float64), 3, {}, "labels are torch.float64; give float32"),
    (InBatchSoftmax(), torch.ones(3, dtype=torch.int64), 3, {}, "labels are torch.int64; give float32"),
    (InBatchSoftmax(), torch.ones(3), 3, {"log_q": torch.ones(3, dtype=torch.float64)}, "log_q are torch.float64"),
    (InBatchSoftmax("id"), torch.ones(3), 3, {}, r"item_key = 'id': candidates have \['item'\]"),
]


@pytest.mark.parametrize(("loss", "labels", "n", "more", "match"), REFUSED)
def test_shapes_that_do_not_fit_are_named(loss, labels, n, more, match):
    with pytest.raises(bseq.UsageError, match=match):
        loss(*scored(labels, n, **more))
    with pytest.raises(bseq.UsageError, match="temperature = 0; give a number above 0"):
        InBatchSoftmax(temperature=0)
