"""What a loss never asked for is not published: gradients are written down, and the record is part of the state."""

import numpy as np
import pytest
import torch
from small_hosts import N_ITEMS, Scoring, TwoTower, batch, make_histories, make_vocabulary, queries, recipe, trained
from torch import nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner

import bseq_plugin as bseq
from bseq_plugin.data.training_data import TrainingData


def publish(host, folder):
    return bseq.publish(host, folder / "store", histories=make_histories(), vocabulary=make_vocabulary())


class Clicks(Scoring):
    """A click model beside a loss over the items that has this weight; without one the items are not asked for."""

    def __init__(self, weight=None):
        super().__init__()
        self.weight, self.click = weight, nn.Linear(8, 1)

    def forward(self, features):
        interest = self.interest(features)["user_interest"]
        clicks = self.click(interest).square().mean()
        return clicks if self.weight is None else clicks + self.weight * super().forward(features)


class ItemsAlone(Scoring):
    def forward(self, features):
        return self.interest.interest_and_items(features)[1]["target"].square().mean()


def after_a_forward(host):
    host.train()(batch(0))
    return host


def after_training_without_effect(host):
    with torch.no_grad():
        host.train()(batch(0))
    host.eval()(batch(0)).backward()
    return host


NO_ITEMS = r"no loss has trained the item vectors .* item_keys = \['target'\]; write a loss over interest_and_items"
NOT_TRAINED = "neither trained nor loaded from one that was"
REFUSED = {
    "items never asked for": (lambda: trained(Clicks(), 3), NO_ITEMS),
    "items with no weight": (lambda: trained(Clicks(0.0), 3), NO_ITEMS),
    "histories never asked for": (lambda: trained(ItemsAlone(), 3), NOT_TRAINED),
    "a forward alone": (lambda: after_a_forward(Scoring()), NOT_TRAINED),
    "no gradients, or no training mode": (lambda: after_training_without_effect(Scoring()), NOT_TRAINED),
    "towers before a random encoder": (lambda: after_a_forward(TwoTower(queries())), NOT_TRAINED),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_no_loss_has_asked_for_is_refused(what, tmp_path):
    make, said = REFUSED[what]
    host = make()
    with pytest.raises(bseq.UsageError, match=said):
        publish(host, tmp_path)
    with pytest.raises(bseq.UsageError, match=said):
        bseq.Run.from_host(host, tmp_path / "run", histories=make_histories(), vocabulary=make_vocabulary())
    assert not list(tmp_path.iterdir())


def test_a_loss_with_a_weight_is_enough(tmp_path):
    assert publish(trained(Clicks(0.5), 3), tmp_path)


def test_the_record_is_that_of_the_state_that_was_loaded(tmp_path):
    taught, fresh = trained(Scoring(), 3), Scoring()
    assert fresh.interest.learned.told() == (False, False)
    fresh.load_state_dict(Scoring().state_dict())
    with pytest.raises(bseq.UsageError, match=NOT_TRAINED):
        publish(fresh, tmp_path)
    fresh.load_state_dict(taught.state_dict())
    assert publish(fresh, tmp_path)
    taught.load_state_dict(Scoring().state_dict())
    with pytest.raises(bseq.UsageError, match=NOT_TRAINED):
        publish(taught, tmp_path)


def test_a_checkpoint_that_is_loaded_in_place_brings_the_record(tmp_path):
    dcp.save({"model": trained(Scoring(), 3).state_dict()}, checkpoint_id=tmp_path / "checkpoint", no_dist=True)
    host = Scoring()
    dcp.load({"model": host.state_dict()}, checkpoint_id=tmp_path / "checkpoint", no_dist=True)
    assert publish(host, tmp_path)


def test_a_checkpoint_without_the_record_is_loaded_in_part(tmp_path):
    """As docs/embedding.md says."""
    taught = trained(Scoring(), 3)
    state = {name: value for name, value in taught.state_dict().items() if "learned" not in name}
    dcp.save({"model": state}, checkpoint_id=tmp_path / "checkpoint", no_dist=True)
    host = Scoring()
    planner = DefaultLoadPlanner(allow_partial_load=True)
    dcp.load({"model": host.state_dict()}, checkpoint_id=tmp_path / "checkpoint", planner=planner, no_dist=True)
    assert all(torch.equal(host.state_dict()[name], value) for name, value in state.items())
    with pytest.raises(bseq.UsageError, match=NOT_TRAINED):
        publish(host, tmp_path)
    assert publish(trained(host, 1), tmp_path)


def test_a_state_without_the_record_is_loaded_and_declared(tmp_path):
    state = {name: value for name, value in trained(Scoring(), 3).state_dict().items() if "learned" not in name}
    host = Scoring()
    host.load_state_dict(state)
    with pytest.raises(bseq.UsageError, match=rf"{NOT_TRAINED}.*encoder\.learned\.declare\(items=\.\.\.\)"):
        publish(host, tmp_path)
    host.interest.learned.declare(items=False)
    with pytest.raises(bseq.UsageError, match=NO_ITEMS):
        publish(host, tmp_path)
    host.interest.learned.declare(items=True)
    assert publish(host, tmp_path)


@pytest.mark.parametrize(("make", "items"), [(Scoring, True), (lambda: TwoTower(queries()), False)])
def test_a_finished_model_says_what_has_learned(make, items, tmp_path):
    """With towers the encoder's own rows were never scored with: as such they are not published from another host."""
    run = bseq.Run.from_host(
        trained(make(), 3), tmp_path / "run", histories=make_histories(), vocabulary=make_vocabulary()
    )
    assert run.model().encoder.learned.told() == (True, items)
    assert run.model().with_items(np.array([3, 1])).encoder.learned.told() == (True, items)
    assert b"learned" not in (run.path / "model" / "encoder.safetensors").read_bytes()


KINDS = {
    "next": recipe(),
    "several interests": recipe(interests={"kind": "several", "n": 3}, objective="prefix"),
    "masked": recipe(encoder={"name": "masked", "max_length": 5, "n_blocks": 1}, objective="masked"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_host_with_the_encoders_own_task_has_learned(kind):
    task = bseq.SequenceInterestTask(KINDS[kind], N_ITEMS).train()
    (step, *_) = TrainingData(make_histories(), make_vocabulary(), KINDS[kind]).batches(0)
    task(step)[0].backward()
    assert task.interest_encoder.learned.told() == (True, True)
