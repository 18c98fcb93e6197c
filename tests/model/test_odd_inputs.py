"""What is no batch is told in words, and names the key."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_hosts import N_ITEMS, Scoring, make_histories, make_vocabulary, recipe, trained
from torchrec import KeyedJaggedTensor

import bseq_plugin as bseq

KEYS = ("event", "target", "negative")


def jagged(values, *lengths, keys=KEYS[:2]):
    return KeyedJaggedTensor(list(keys), torch.as_tensor(values), lengths=torch.tensor(lengths))


ODD = {
    "fewer values": (jagged([1, 2, 3], 2, 1, 1, 1), r"key 'target': its lengths \[1, 1\] take values 3 to 5 of 3"),
    "more values": (jagged([1, 2, 3, 4], 1, 1, 1, 0), r"key 'target': its lengths \[1, 0\] take values 2 to 3 of 4"),
    "a length below 0": (jagged([1, 2, 3], 3, -1, 1, 0), r"key 'event': its lengths \[3, -1\]"),
    "floats": (jagged([1.0, 2.0], 1, 0, 1, 0), r"values of keys \['event', 'target'\] are torch.float32; give ids"),
    "a tensor": (torch.tensor([1, 2]), "is a Tensor; give a KeyedJaggedTensor"),
    "a dict": ({"event": torch.tensor([1])}, "is a dict; give a KeyedJaggedTensor"),
    "nothing": (None, "is a NoneType; give a KeyedJaggedTensor"),
}


@pytest.mark.parametrize("what", ODD)
def test_a_history_that_is_none_is_told(what):
    given, said = ODD[what]
    encoder = Scoring().interest
    for read in (encoder, encoder.interest_and_items, encoder.check):
        with pytest.raises(bseq.UsageError, match=said):
            read(given)


@pytest.mark.parametrize("what", ["a tensor", "nothing"])
def test_so_are_other_doors(what):
    given, said = ODD[what]
    for read in (bseq.Batch.of, lambda features: bseq.latest_events(features, 3)):
        with pytest.raises(bseq.UsageError, match=said):
            read(given)


def test_what_is_no_batch_of_the_task_is_told():
    task = bseq.SequenceInterestTask(recipe(), N_ITEMS)
    features = jagged([1, 2, 3], 1, 1, 1, keys=KEYS)
    for given in (features, features.to_dict(), torch.ones(2)):
        with pytest.raises(bseq.UsageError, match=rf"bseq\.Batch, not a {type(given).__name__}; .*bseq\.Batch\.of"):
            task(given)
    with pytest.raises(bseq.UsageError, match="key 'negative': its lengths"):
        bseq.Batch.of(jagged([1, 2, 3], 1, 1, 2, keys=KEYS))
    with pytest.raises(bseq.UsageError, match="are torch.float32; give ids"):
        bseq.Batch.of(jagged([1.0, 2.0, 3.0], 1, 1, 1, keys=KEYS), log_expected_count_N=torch.zeros(1))


def test_an_item_key_that_is_missing_is_told_to_be_empty():
    """And then it may be."""
    encoder = Scoring().interest
    with pytest.raises(bseq.UsageError, match=r"no key 'target', one of the encoder's item_keys; .* a length of 0 for"):
        encoder(jagged([1, 2], 1, 1, keys=["event"]))
    with pytest.raises(bseq.UsageError, match=r"no key 'event'; it has \['target'\], .*keys=\{'event': "):
        encoder(jagged([1, 2], 1, 1, keys=["target"]))
    assert encoder(jagged([1, 2], 1, 1, 0, 0))["user_interest"].shape == (2, 8)


ODD_KEYS = [
    ({"item_keys": "target"}, r"item_keys = 'target'; give a list of keys .*\['target'\]"),
    ({"item_keys": [3]}, r"item_keys = \[3\]; give a list"),
    ({"item_keys": 3}, "item_keys = 3; give a list"),
    ({"item_keys": {"a"}}, r"item_keys = \{.*\}; give a list"),
    ({"item_keys": ["a", "b", "a"]}, "key 'a' is read as an item key and as an item key"),
    ({"item_keys": ["event"]}, "key 'event' is read as event and as an item key"),
    ({"item_keys": ["x"], "keys": {"event": "x"}}, "key 'x' is read as event and as an item key"),
    ({"keys": {"event": "timestamp"}}, "key 'timestamp' is read as event and as timestamp"),
    ({"keys": ["x"]}, r"keys = \['x'\]; give a mapping from our names to yours"),
    ({"keys": "event"}, "keys = 'event'; give a mapping"),
    ({"keys": {"event": 3}}, r"keys = \{'event': 3\}; give a mapping"),
    ({"keys": {"evnt": "x"}}, "the encoder reads no 'evnt'; it reads"),
]


@pytest.mark.parametrize(("given", "said"), ODD_KEYS, ids=lambda given: str(given)[:30])
def test_keys_that_are_none_are_told(given, said):
    with pytest.raises(bseq.UsageError, match=said):
        bseq.SequenceInterestEncoder(recipe(), N_ITEMS, **given)


@pytest.mark.parametrize("given", [(jagged([1, 2], 1, 1), 5), (recipe(), 2.5), (recipe(), -1), (recipe(), "five")])
def test_what_is_no_recipe_or_no_number_of_items_is_told(given):
    for make in (bseq.SequenceInterestEncoder, bseq.SequenceInterestTask):
        with pytest.raises(bseq.UsageError, match="recipe is a .*, n_items = .*; give a bseq.Recipe, and how many"):
            make(*given)


@pytest.mark.parametrize(("ids", "said"), [(np.arange(40) / 2, "floating"), (np.arange(40) > 3, "boolean")])
def test_ids_of_users_are_integers_or_strings(ids, said, tmp_path):
    """Of a host and of a model."""
    model = bseq.Run.from_host(
        trained(Scoring(), 2), tmp_path / "run", histories=make_histories(), vocabulary=make_vocabulary()
    ).model()
    with pytest.raises(bseq.UsageError, match=f"histories: ids of users are {said}, for example .*; give integers or"):
        bseq.publish(model, tmp_path / "store", histories=replace(make_histories(), user_ids=ids))
    assert not (tmp_path / "store").exists()
