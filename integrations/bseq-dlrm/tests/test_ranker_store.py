"""An encoder that learns the next item beside a ranker's clicks answers from a store as the host scores."""

from __future__ import annotations

import host_job
import pytest
import ranker_job as job
import torch
from bseq_dlrm import DLRMInterestTrain, DLRMWithInterest
from host_job import one_process, published  # noqa: F401  # a fixture
from torchrec.models.deepfm import SimpleDeepFMNN
from torchrec.models.dlrm import DLRM, DLRM_DCN

import bseq_plugin as bseq

CASES = [  # host, sharding, optimizer of the tables, interests, what is pipelined
    (DLRM_DCN, "row_wise", "row_wise_adagrad", 1, 2),
    (DLRM, "row_wise", "sgd", 3, 2),
    (DLRM, "column_wise", "adagrad", 1, 2),
    (SimpleDeepFMNN, "column_wise", "sgd", 3, 2),
    (job.MaskedItemHost, "row_wise", "row_wise_adagrad", 3, 1),
    (job.MaskedItemHost, "column_wise", "sgd", 1, 1),
]


@pytest.mark.parametrize(("kind", "sharding", "optimizer", "n_interests", "n_pipelined"), CASES)
def test_the_store_finds_what_the_host_finds(tmp_path, kind, sharding, optimizer, n_interests, n_pipelined):
    figures = job.trained_and_published(tmp_path / "store", kind, sharding, optimizer, n_interests)
    host_job.check(figures, n_pipelined)
    assert figures["losses"][-1] < 0.5 * figures["losses"][0]


def test_two_processes_publish_what_they_have_trained_together(tmp_path):
    first, second = host_job.on_two_processes(job.__file__, tmp_path)
    for ours, theirs in zip(first, second, strict=True):
        host_job.check(ours, theirs["n_pipelined"])
        assert ours["host"] == theirs["host"]


def test_what_no_loss_has_scored_with_is_refused(tmp_path):
    encoder = job.make_encoder("cpu", item_keys=())
    task = DLRMInterestTrain(DLRMWithInterest(job.make_host(DLRM, "cpu"), encoder))
    task(job.batch(0, item_keys=()))[0].backward()
    with pytest.raises(bseq.UsageError, match="no loss has asked for table 'item' of model.interest"):
        published(task, tmp_path / "store")


def test_item_keys_that_no_loss_has_read_are_refused(tmp_path):
    """Clicks alone, under the pipeline, of an encoder that could have scored items."""
    torch.manual_seed(0)
    encoder = job.make_encoder()
    parallel, pipeline, _ = job.train(DLRMInterestTrain(DLRMWithInterest(job.make_host(DLRM), encoder)), n_steps=5)
    pipeline.detach()
    assert encoder.learned.told() == (True, False)
    with pytest.raises(bseq.UsageError, match=r"no gradient has come back to the rows of item_keys = \['target', 'neg"):
        published(parallel, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_what_was_never_trained_is_refused(tmp_path):
    task, _ = job.make_task(DLRM)
    with pytest.raises(bseq.UsageError, match="the encoder was neither trained nor loaded"):
        published(task, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_frozen_encoder_that_has_learned_is_published_from_its_host(tmp_path):
    torch.manual_seed(0)
    parallel, pipeline, _ = job.train(job.make_task(DLRM)[0])
    pipeline.detach()
    vocabulary, histories, right, rows = host_job.served_histories()
    run = bseq.Run.from_host(parallel, tmp_path / "run", histories=histories, vocabulary=vocabulary)
    trained = run.model().encoder
    encoder = job.make_encoder("cpu")
    encoder.load_state_dict(trained.state_dict())
    before = encoder.embedding_collection.state_dict()["embeddings.item.weight"].clone()
    ranker = DLRMWithInterest(job.make_host(DLRM, "cpu"), encoder, frozen=True)
    _, pipeline, losses = job.train(DLRMInterestTrain(ranker), n_steps=40)
    published(ranker, tmp_path / "store")
    pipeline.detach()
    theirs = host_job.hit(job.top_of_host(ranker.interest, rows), right)
    assert host_job.hit(host_job.top_of_store(tmp_path / "store"), right) == host_job.EQUAL(theirs, abs=1e-3)
    assert theirs > 0.6
    assert losses[-1] < 0.9 * losses[0]
    after = ranker.interest.embedding_collection.state_dict()["embeddings.item.weight"].local_shards()[0].tensor
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_of_two_encoders_the_one_that_is_meant_is_published(tmp_path):
    torch.manual_seed(0)
    once = DLRMWithInterest(job.make_host(DLRM), job.make_encoder(item_keys=()))
    ranker = DLRMWithInterest(once, job.make_encoder())
    parallel, pipeline, _ = job.train(DLRMInterestTrain(ranker, next_item_weight=0.5))
    assert len(pipeline._pipelined_modules) == 3
    with pytest.raises(bseq.UsageError, match=r"has 2 of what .*model.interest', .*model.earlier.0.interest'"):
        published(parallel, tmp_path / "store")
    published(ranker.interest, tmp_path / "store")
    pipeline.detach()
    _, _, right, rows = host_job.served_histories()
    theirs = host_job.hit(job.top_of_host(ranker.interest, rows), right)
    assert host_job.hit(host_job.top_of_store(tmp_path / "store"), right) == host_job.EQUAL(theirs, abs=1e-3)
    assert theirs > 0.6
