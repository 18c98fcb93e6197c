"""What a two-tower host has trained is what its store serves; what a store can't serve is refused by name."""

from __future__ import annotations

from dataclasses import replace

import host_job
import pytest
import torch
import two_tower_job as job
from bseq_two_tower import InterestTwoTower, InterestTwoTowerTrain
from host_job import one_process, published  # noqa: F401  # a fixture
from torch import nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor

import bseq_plugin as bseq

CASES = [  # sharding, optimizer of the tables, loss, interests
    ("row_wise", "row_wise_adagrad", "in_batch", 1),
    ("row_wise", "sgd", "in_batch", 3),
    ("column_wise", "adagrad", "several", 1),
    ("column_wise", "sgd", "one", 3),
]


@pytest.mark.parametrize(("sharding", "optimizer", "kind", "n_interests"), CASES)
def test_the_store_finds_what_the_host_finds(tmp_path, sharding, optimizer, kind, n_interests):
    figures = job.trained_and_published(tmp_path / "store", sharding, optimizer, kind, n_interests=n_interests)
    host_job.check(figures, 2)


def test_two_processes_publish_what_they_have_trained_together(tmp_path):
    first, second = host_job.on_two_processes(job.__file__, tmp_path)
    for ours, theirs in zip(first, second, strict=True):
        host_job.check(ours, theirs["n_pipelined"])
        assert ours["host"] == theirs["host"]


def trained(features=("user",), keep=None, steps=3, kind="in_batch", interest=None, frozen=False, host=None, ids=None):
    """A plain two-tower after a few steps of Adam; ``ids``: the host's own id of each row of the vocabulary."""
    torch.manual_seed(0)
    host = host or job.RetrievalHost("cpu", features)
    model = InterestTwoTower(host, interest or job.make_encoder("cpu"), frozen, keep)
    task = InterestTwoTowerTrain(model, job.LOSSES[kind]()).train()
    optimizer = torch.optim.Adam([p for p in task.parameters() if p.requires_grad], lr=1e-2)
    for seed in range(steps):
        optimizer.zero_grad()
        data = job.batch(seed, kind)
        if ids is not None:
            data.candidates = job.ids("item", ids[data.candidates.values()])
        task(data)[0].backward()
        optimizer.step()
    return model


def test_a_frozen_encoder_that_was_trained_before_is_published(tmp_path):
    encoder = trained(steps=40).interest
    fresh = job.make_encoder("cpu")
    fresh.load_state_dict(encoder.state_dict())
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    model = trained(steps=40, interest=fresh, frozen=True)
    right, rows = published(model, tmp_path / "store")
    theirs, ours = (
        host_job.hit(job.top_of_host(model, rows), right),
        host_job.hit(host_job.top_of_store(tmp_path / "store"), right),
    )
    assert ours == host_job.EQUAL(theirs, abs=1e-3)
    assert theirs > 0.6
    for name, value in fresh.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_what_was_never_trained_is_refused(tmp_path):
    for frozen in (False, True):
        model = InterestTwoTower(job.RetrievalHost(), job.make_encoder("cpu"), frozen)
        if frozen:
            model.train()(job.batch(0, "one").history, job.batch(0, "one").candidates)
        with pytest.raises(bseq.UsageError, match="the encoder was neither trained nor loaded"):
            published(model, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_random_towers_behind_a_trained_encoder_are_refused(tmp_path):
    """The record of the towers is their own; a step of training, or a word, is what they need."""
    fresh = job.make_encoder("cpu")
    fresh.load_state_dict(trained(steps=5).interest.state_dict())
    model = InterestTwoTower(job.RetrievalHost(), fresh).train()
    with pytest.raises(bseq.UsageError, match="the query tower and the candidate tower of Interest"):
        published(model, tmp_path / "store")
    batch = job.batch(0, "one")
    model.query(batch.history).sum().backward()
    with pytest.raises(bseq.UsageError, match="the candidate tower of InterestTwoTower has not been trained"):
        published(model, tmp_path / "store")
    assert not (tmp_path / "store").exists()
    model.candidate(batch.candidates).sum().backward()
    published(model, tmp_path / "store")
    loaded = InterestTwoTower(job.RetrievalHost(), job.make_encoder("cpu"))
    loaded.load_state_dict(model.state_dict())
    published(loaded, tmp_path / "loaded")


def test_towers_that_are_not_what_the_host_scores_with_are_refused(tmp_path):
    class Louder(InterestTwoTower):
        def query(self, history, query_features=None):
            return super().query(history, query_features) * 1.01 + 0.1

    model = trained()
    model.__class__ = Louder
    with pytest.raises(bseq.RunError, match=r"differ by up to .* query_tower and candidates of export_towers must be"):
        published(model, tmp_path / "store")
    model.__class__ = InterestTwoTower
    towers = model.export_towers()
    changed = nn.Linear(job.DIM, job.WIDTH)
    with pytest.raises(bseq.RunError, match="differ by up to"):
        published(replace(towers, query_tower=changed), tmp_path / "store")
    assert not (tmp_path / "store").exists()
    published(model, tmp_path / "store")


def test_a_store_takes_no_query_features(tmp_path):
    model = trained(("user", "country"), ["country"])
    with pytest.raises(bseq.UsageError, match=r"the query tower reads \['country'\] beside the history, and a store"):
        published(model, tmp_path / "store")
    published(trained(("user", "country"), []), tmp_path / "store")


def test_a_candidate_tower_that_reads_more_than_an_id_is_told_what(tmp_path):
    torch.manual_seed(0)
    host = job.RetrievalHost(features=("user", "country"))
    host._feature_names_query, host._candidate_feature_names = ["user"], ["item", "country"]
    host.candidate_proj = nn.Linear(2 * job.DIM, job.WIDTH)
    model = InterestTwoTower(host, job.make_encoder("cpu"))

    def features_of(rows):
        ids = torch.cat([rows, rows % job.N_COUNTRIES])
        return KeyedJaggedTensor(["item", "country"], ids, lengths=torch.ones_like(ids))

    query, candidates = model(job.batch(0, "one").history, features_of(torch.arange(1, 9)))
    (query @ candidates.T).square().mean().backward()
    with pytest.raises(bseq.UsageError, match=r"the candidate tower reads \['item', 'country'\]; say what they are"):
        published(model, tmp_path / "store")
    _, rows = published(model.export_towers(features_of), tmp_path / "store")
    with torch.no_grad():
        history = KeyedJaggedTensor(["event"], torch.from_numpy(rows[0]), lengths=torch.tensor([host_job.L]))
        query, candidates = model.eval()(history, features_of(torch.arange(1, host_job.V + 1)))
    best = (query @ candidates.T).topk(10).indices[0] + 1
    assert set(host_job.top_of_store(tmp_path / "store")[0].tolist()) == set(best.tolist())


@pytest.mark.parametrize("n_more", [-3, 7])
def test_candidate_ids_of_another_numbering_are_mapped_or_refused(tmp_path, n_more):
    """The store finds what the host finds, once it is told which id each row is."""
    n_ids = host_job.V + 1 + n_more
    own_id = torch.arange(host_job.V + 1).flip(0) % n_ids
    host = job.RetrievalHost()
    table = EmbeddingBagConfig(name="t_item", embedding_dim=job.DIM, num_embeddings=n_ids, feature_names=["item"])
    user = EmbeddingBagConfig(name="t_user", embedding_dim=job.DIM, num_embeddings=9, feature_names=["user"])
    host.ebc = EmbeddingBagCollection(tables=[user, table])
    model = trained(host=host, ids=own_id, steps=60)
    said = rf"table of candidate key 'item' has {n_ids} rows, the encoder's item table {host_job.V + 1}, .*candidate_f"
    with pytest.raises(bseq.UsageError, match=said):
        published(model, tmp_path / "store")
    assert not (tmp_path / "store").exists()
    right, rows = published(model.export_towers(lambda rows: job.ids("item", own_id[rows])), tmp_path / "store")
    lengths = torch.full((host_job.U,), host_job.L)
    with torch.no_grad():
        query = model.query(KeyedJaggedTensor(["event"], torch.from_numpy(rows.ravel()), lengths=lengths))
        scores = query @ model.candidate(job.ids("item", own_id[1:])).T
    theirs = host_job.hit(scores.topk(10).indices.numpy() + 1, right)
    assert host_job.hit(host_job.top_of_store(tmp_path / "store"), right) == host_job.EQUAL(theirs, abs=0.02)  # ties
    assert theirs > 0.6


def test_a_table_that_no_loss_has_scored_with_is_refused(tmp_path):
    model = trained()
    host = nn.ModuleDict({"encoder": model.interest})  # without its towers
    with pytest.raises(bseq.UsageError, match="no loss has asked for table 'item' of encoder"):
        published(host, tmp_path / "store")
