"""States at events, against each history cut there and encoded by itself; what a run learned from."""

from pathlib import Path

import numpy as np
import pytest
import torch

import bseq_plugin as bseq


def history(items, n_types=2):
    items = np.array(items, np.int64)
    times = np.arange(len(items)) * 3_600_000_000
    return bseq.Sequences(np.array([1]), np.array([0, len(items)]), items, times, items % n_types)


@pytest.fixture(scope="module")
def model():
    """It looks back only, and counts positions from nowhere."""
    torch.manual_seed(0)
    recipe = bseq.Recipe(
        encoder={"name": "gru", "max_length": 5}, vectors={"dim": 4}, events={"features": ("event_type",)}
    )
    vocabulary = bseq.Vocabulary(np.arange(9), np.ones(9, np.int64), ("buy", "view"))
    encoder = bseq.SequenceInterestEncoder(recipe, 9, 2, device="cpu")
    state = {name: value + torch.randn(value.shape) for name, value in encoder.state_dict().items()}
    return bseq.InterestModel.from_state(recipe, vocabulary, state, None, None)


def test_a_state_is_the_interest_of_the_history_up_to_there(model):
    whole = bseq.Sequences.join([history([3, 1, 4, 1, 5]), history([9, 2, 6])])
    states_TS = bseq.event_states(model.encoder, whole)
    assert states_TS.requires_grad  # a network on top may train the encoder on
    ends = [(user, place + 1) for user in (0, 1) for place in range(whole.offsets[user], whole.offsets[user + 1])]
    for place, (user, end) in enumerate(ends):
        cut = whole.slices(np.array([user]), whole.offsets[user : user + 1], np.array([end]))
        torch.testing.assert_close(states_TS[place].detach(), model.encode(cut)[0, 0], rtol=1e-5, atol=1e-6)


def test_attention_sums_to_one_and_is_none_without():
    recipe = bseq.Recipe(encoder={"name": "mean", "max_length": 5}, vectors={"dim": 4}, events={"features": ()})
    mean = bseq.SequenceInterestEncoder(recipe, 9, device="cpu").eval()
    weights_T = bseq.event_attention(mean, history([3, 1, 4]))
    assert weights_T is not None
    assert float(weights_T.sum()) == pytest.approx(1.0)
    gru = bseq.SequenceInterestEncoder(recipe.replace(encoder="gru"), 9, device="cpu").eval()
    assert bseq.event_attention(gru, history([3, 1, 4])) is None


def test_a_log_without_what_the_model_reads_is_refused(model):
    log = history([3, 1])
    model.check_log(log)
    bare = bseq.Sequences(log.user_ids, log.offsets, log.items)
    with pytest.raises(bseq.SchemaError, match="the model reads event types.*but the log has none; give a log with it"):
        model.check_log(bare)


@pytest.mark.parametrize("split", ["leave_one_out", {"kind": "time", "horizon_days": 14.0}, "none"])
def test_the_training_part_of_a_run_is_what_its_vocabulary_counted(tiny_frame, tiny_recipe, tmp_path, split):
    """Training counts the items of what it learns from, whatever the split."""
    recipe = tiny_recipe.replace(split=split, training={"epochs": 1})
    run = bseq.train(bseq.Events.from_frame(tiny_frame), recipe, tmp_path / "run", progress=False)
    items, vocabulary = bseq.Run(Path(run.path)).training_part().items, run.vocabulary()
    counts = np.bincount(items, minlength=vocabulary.n_items + 1)[1:]
    assert counts.tolist() == vocabulary.item_counts.tolist()
