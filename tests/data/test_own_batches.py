"""What a host makes of its own KeyedJaggedTensors: cut histories, and batches for ``SequenceInterestTask``."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchrec import KeyedJaggedTensor

import bseq_plugin as bseq

INTS = st.sampled_from([torch.int32, torch.int64])


def tensor(columns, dtype=torch.int64, lengths_dtype=torch.int64, weights=False):
    """Key -> one list a user."""
    values = [value for rows in columns.values() for row in rows for value in row]
    lengths = [len(row) for rows in columns.values() for row in rows]
    return KeyedJaggedTensor(
        list(columns),
        torch.tensor(values, dtype=dtype),
        torch.arange(len(values)) / 8 if weights else None,
        lengths=torch.tensor(lengths, dtype=lengths_dtype),
        stride=len(next(iter(columns.values()))),
    )


def rows(kjt):
    return {key: [row.tolist() for row in kjt[key].to_dense()] for key in kjt.keys()}  # noqa: SIM118


def weights(kjt):
    return {key: [row.tolist() for row in kjt[key].to_dense_weights()] for key in kjt.keys()}  # noqa: SIM118


@st.composite
def features(draw):
    n_users = draw(st.integers(0, 5))
    row = st.lists(st.integers(0, 9), max_size=6)
    keys = draw(st.lists(st.sampled_from("abcd"), min_size=1, unique=True))
    return {key: draw(st.lists(row, min_size=n_users, max_size=n_users)) for key in keys}


@given(features(), st.integers(1, 7), st.data(), INTS, INTS, st.booleans())
@settings(max_examples=150, deadline=None)
def test_latest_events_are_those_of_a_loop(columns, max_length, data, dtype, lengths_dtype, weighted):
    cut = data.draw(st.none() | st.lists(st.sampled_from(sorted(columns)), unique=True))
    kjt = tensor(columns, dtype, lengths_dtype, weighted)
    found = bseq.latest_events(kjt, max_length, cut)

    def last(by_key):
        return {k: [row[-max_length:] if cut is None or k in cut else row for row in by_key[k]] for k in by_key}

    assert rows(found) == last(columns)
    assert (found.values().dtype, found.lengths().dtype, found.keys()) == (dtype, lengths_dtype, kjt.keys())
    assert found.stride() == kjt.stride()
    if weighted:
        assert weights(found) == last(weights(kjt))
    assert (found is kjt) == (rows(found) == columns)


def test_latest_events_of_keys_with_batches_of_their_own():
    kjt = KeyedJaggedTensor(
        ["a", "b"],
        torch.arange(8),
        lengths=torch.tensor([3, 1, 4]),
        stride_per_key_per_rank=[[2], [1]],
        inverse_indices=(["a", "b"], torch.tensor([[0, 1], [0, 0]])),
    )
    found = bseq.latest_events(kjt, 2)
    assert (found.values().tolist(), found.lengths().tolist()) == ([1, 2, 3, 6, 7], [2, 1, 2])
    assert found.stride_per_key() == [2, 1]
    assert found.inverse_indices()[1].tolist() == [[0, 1], [0, 0]]


def test_latest_events_refuses_what_it_can_not_do():
    kjt = tensor({"event": [[1, 2]]})
    with pytest.raises(bseq.UsageError, match=r"no key 'evnt'; give some of the keys \['event'\]"):
        bseq.latest_events(kjt, 2, ["evnt"])
    with pytest.raises(bseq.UsageError, match="max_length = 0"):
        bseq.latest_events(kjt, 0)
    for length in (2.5, "2", None):
        with pytest.raises(bseq.UsageError, match=f"max_length = {length!r}; .* a whole number of 1 or more"):
            bseq.latest_events(kjt, length)
    assert bseq.latest_events(kjt, np.int64(1)).values().tolist() == [2]


def test_one_string_is_not_taken_for_a_list_of_letters():
    kjt = tensor({key: [[1, 2, 3]] for key in ("e", "v", "n", "t", "event")})
    with pytest.raises(bseq.UsageError, match=r"keys = 'event': give a list of names, \['event'\]"):
        bseq.latest_events(kjt, 2, "event")
    with pytest.raises(bseq.UsageError, match=r"keys = 'e': give a list"):
        bseq.latest_events(kjt, 2, "e")
    with pytest.raises(bseq.UsageError, match="item_keys = 'abc'; give a list of keys"):
        bseq.SequenceInterestEncoder(RECIPE, N_ITEMS, item_keys="abc")
    encoder = bseq.SequenceInterestEncoder(RECIPE, N_ITEMS).eval()
    with pytest.raises(bseq.UsageError, match=r"keys = 'event': give a list"):
        bseq.ExportableEncoder(encoder, "event")
    log = bseq.Sequences(np.array([1]), np.array([0, 2]), np.array([1, 2]), event_types=np.array([1, 2]))
    with pytest.raises(bseq.UsageError, match=r"events = 'event_type': give a list of names, \['event_type'\]"):
        bseq.history_features(log, "event_type")
    with pytest.raises(bseq.UsageError, match=r"no event feature 'event_typ'; there are: \['event_type', 'time_gap'"):
        bseq.history_features(log, ["event_typ"])


N_ITEMS, DIM = 6, 4
RECIPE = bseq.Recipe(
    encoder={"name": "mean", "max_length": 5}, vectors={"dim": DIM}, events={"features": ()}, loss={"name": "softmax"}
)


def loss_of_a_loop(task, columns, log_count):
    """The loss in float64, one user, target and negative after the other."""
    table = task.interest_encoder.embedding_collection.embeddings["item"].weight.detach().double()
    negatives = [item for row in columns["negative"] for item in row]
    losses = []
    for events, wanted in zip(columns["event"], columns["target"], strict=True):
        wanted = [item for item in wanted if item]
        if not events:
            continue
        score = table @ table[events].mean(0)
        others = [
            math.exp(score[item] - (log_count[place] if log_count else 0))
            for place, item in enumerate(negatives)
            if item not in wanted
        ]
        total = math.fsum([*others, *(math.exp(score[item]) for item in wanted)])
        losses += [math.log(total) - float(score[item]) for item in wanted]
    return (math.fsum(losses) / len(losses) if losses else 0.0), len(losses)


user = st.tuples(st.lists(st.integers(0, N_ITEMS), max_size=5), st.lists(st.integers(0, N_ITEMS), max_size=3))


@given(st.lists(user, min_size=1, max_size=4), st.data(), st.booleans(), INTS)
@settings(max_examples=60, deadline=None)
def test_the_task_s_loss_on_a_batch_of_a_tensor_is_that_of_a_loop(users, data, whole, dtype):
    columns = {"event": [events for events, _ in users], "target": [targets for _, targets in users]}
    if whole:
        columns["negative"] = [list(range(1, N_ITEMS + 1)), *([] for _ in users[1:])]
        log_count = None
    else:
        row = st.lists(st.integers(1, N_ITEMS), min_size=1, max_size=4)
        columns["negative"] = [data.draw(row) for _ in users]
        log_count = [data.draw(st.floats(-3, 1)) for row in columns["negative"] for _ in row]
    torch.manual_seed(0)
    task = bseq.SequenceInterestTask(RECIPE, N_ITEMS)
    torch.nn.init.normal_(task.interest_encoder.embedding_collection.embeddings["item"].weight)
    counts = None if log_count is None else torch.tensor(log_count)
    batch = bseq.Batch.of(tensor(columns, dtype), log_expected_count_N=counts, loss_scale=0.5)
    loss, outputs = task(batch)
    expected, n_targets = loss_of_a_loop(task, columns, log_count)
    assert float(loss.detach()) == pytest.approx(expected / 2, rel=1e-4, abs=1e-5)
    assert (float(outputs["n_targets"]), len(batch.target_ids_S)) == (n_targets, n_targets)
    loss.backward()
    assert torch.isfinite(task.interest_encoder.embedding_collection.embeddings["item"].weight.grad).all()


def test_a_batch_by_hand():
    columns = {"event": [[1, 2], [], [3], [4]], "target": [[5, 6], [1], [], [0, 2]], "negative": [[3, 1], [], [6], []]}
    batch = bseq.Batch.of(tensor(columns), log_expected_count_N=torch.zeros(3))
    assert batch.state_rows_Q.tolist() == [1, 3]
    assert batch.target_state_S.tolist() == [0, 0, 1]
    assert batch.target_ids_S.tolist() == [5, 6, 2]
    assert batch.target_weights_S.tolist() == [1.0, 1.0, 1.0]
    assert batch.negative_ids_N.tolist() == [3, 1, 6]
    assert rows(batch.features) == columns | {"target": [[5, 6], [], [], [2]]}
    assert (float(batch.loss_scale), batch.n_events) == (1.0, 4)


def test_what_is_no_batch_is_refused():
    columns = {"event": [[1, 2]], "target": [[3]], "negative": [[1, 2, 3]]}
    bseq.Batch.of(tensor(columns))
    for key in columns:
        without = {name: values for name, values in columns.items() if name != key}
        with pytest.raises(bseq.UsageError, match=f"needs the key '{key}'"):
            bseq.Batch.of(tensor(without))
    for negatives in ([3, 2, 1], [1, 1, 3], [1, 2]):
        with pytest.raises(bseq.UsageError, match="key 'negative' has . values; .* have to be a whole catalogue"):
            bseq.Batch.of(tensor(columns | {"negative": [negatives]}))
    with pytest.raises(bseq.UsageError, match=r"'negative' has 3 values; .* shape \(2,\)"):
        bseq.Batch.of(tensor(columns), log_expected_count_N=torch.zeros(2))
