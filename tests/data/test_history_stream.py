"""All users' histories, batch by batch: every user once, equally many steps, an order of (seed, epoch)."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import bseq_plugin as bseq
from bseq_plugin.readers.seal import seal

START = 1_600_000_000_000_000
RECIPE = bseq.Recipe(encoder={"name": "mean", "max_length": 3}, events={"features": ("time_gap",)})


def log_of(n_users):
    """User u has u % 6 events of its own items, one a second."""
    lengths = np.arange(n_users) % 6
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    places = np.arange(offsets[-1])
    times = START + (places - np.repeat(offsets[:-1], lengths)) * 1_000_000
    return bseq.Sequences(np.arange(n_users) + 100, offsets, places + 1, times)


def vocabulary_of(log):
    return bseq.Vocabulary(np.arange(log.n_events) * 7, np.ones(log.n_events, np.int64))


@pytest.fixture(scope="module")
def partitioned(tmp_path_factory):
    """23 users in three partitions, row groups of 4, one partition without users; and the same in memory."""
    folder, log = tmp_path_factory.mktemp("parts"), log_of(23)
    import pyarrow.parquet as pq

    for number, users in enumerate((range(11), range(0), range(11, 23))):
        table = log.take(np.array(users, np.int64)).to_table(vocabulary_of(log))
        pq.write_table(table, folder / f"part-{number:05d}.parquet", row_group_size=4)
    return seal(folder), log


def flat(stream):
    """[(user ids, {user: (items, time gaps)})] of every batch."""
    found = []
    for user_ids, kjt in stream:
        items, gaps = kjt["event"].to_dense(), kjt["time_gap"].to_dense()
        assert kjt.stride() == len(user_ids)
        found.append([(int(u), i.tolist(), g.tolist()) for u, i, g in zip(user_ids, items, gaps, strict=True)])
    return found


def expected(log, at_us=None):
    cut = (log if at_us is None else log.between(None, at_us)).latest(3)
    rows = np.split(cut.items, cut.offsets[1:-1])
    gaps = [[0, *[2] * (len(row) - 1)][: len(row)] for row in rows]  # one second is bucket 2
    return [(int(u), row.tolist(), gap) for u, row, gap in zip(cut.user_ids, rows, gaps, strict=True)]


@given(st.integers(0, 20), st.integers(1, 7), st.integers(1, 5), st.none() | st.integers(0, 3))
@settings(max_examples=80, deadline=None)
def test_ranks_share_the_users_in_equally_many_batches(n_users, batch_users, world_size, seed):
    log = log_of(n_users)
    ranks = [
        flat(bseq.HistoryStream(log, RECIPE, batch_users, seed=seed, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert {len(batches) for batches in ranks} == {-(-n_users // (batch_users * world_size))}
    assert all(1 <= len(batch) <= batch_users for batches in ranks for batch in batches)
    users = [user for batches in ranks for batch in batches for user in batch]
    wanted = expected(log) if n_users else []
    assert sorted({user[0]: user for user in users}.values()) == wanted
    if n_users >= world_size and batch_users > 1:
        assert len(users) == n_users
        assert seed is not None or users == wanted


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize(("world_size", "batch_users"), [(1, 5), (1, 100), (2, 3), (5, 2)])
def test_partitions_hold_the_same_histories(partitioned, seed, world_size, batch_users):
    parts, log = partitioned
    users = []
    for rank in range(world_size):
        stream = bseq.HistoryStream(
            parts, RECIPE, batch_users, vocabulary=vocabulary_of(log), seed=seed, rank=rank, world_size=world_size
        )
        users += [user for batch in flat(stream) for user in batch]
    assert (sorted(users) if seed == 0 else users) == expected(log)


def test_a_row_group_is_read_once_and_no_two_are_held(partitioned, monkeypatch):
    parts, log = partitioned
    read = []
    original = bseq.PartitionedSequences.read
    monkeypatch.setattr(
        bseq.PartitionedSequences, "read", lambda *args: (read.append((args[1], *args[2])), original(*args))[1]
    )
    stream = bseq.HistoryStream(parts, RECIPE, 3, vocabulary=vocabulary_of(log), seed=1)
    assert len(flat(stream)) == 8
    assert sorted(read) == [(0, 0), (0, 1), (0, 2), (2, 0), (2, 1), (2, 2)]


def test_the_order_is_one_of_seed_and_epoch(partitioned):
    parts, log = partitioned

    def order(sequences, seed, epoch):
        stream = bseq.HistoryStream(sequences, RECIPE, 4, vocabulary=vocabulary_of(log), seed=seed)
        stream.epoch = epoch
        return [user[0] for batch in flat(stream) for user in batch]

    for sequences in (parts, log):
        orders = [tuple(order(sequences, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)]
        assert len(set(orders)) == 4
        assert order(sequences, 0, 1) == list(orders[1])


def test_each_row_group_has_an_order_of_its_own(partitioned):
    parts, log = partitioned
    orders = set()
    for seed in range(3):
        stream = bseq.HistoryStream(parts, RECIPE, 23, vocabulary=vocabulary_of(log), seed=seed)
        [users] = [[user[0] - 100 for user in batch] for batch in flat(stream)]
        whole = [[u % 4 for u in users if u // 4 == group] for group in (0, 1)]  # the two of 4 users in the first part
        orders.add(whole[0] == whole[1])
    assert orders != {True}


def test_histories_end_before_an_instant(partitioned):
    parts, log = partitioned
    at_us = START + 3_000_000
    for sequences in (parts, log):
        stream = bseq.HistoryStream(sequences, RECIPE, 6, vocabulary=vocabulary_of(log), at_us=at_us)
        assert [user for batch in flat(stream) for user in batch] == expected(log, at_us)


@pytest.mark.parametrize("n_workers", [0, 2])
def test_a_data_loader_reads_it(partitioned, n_workers):
    parts, log = partitioned
    stream = bseq.HistoryStream(parts, RECIPE, 4, vocabulary=vocabulary_of(log), seed=3)
    loader = DataLoader(stream, batch_size=None, num_workers=n_workers)
    for epoch in (0, 1):
        stream.epoch = epoch
        batches = list(loader)
        assert all(isinstance(user_ids, torch.Tensor) for user_ids, _ in batches)
        assert sorted(user for batch in flat(batches) for user in batch) == expected(log)
        assert len(batches) == 6  # two workers: 12 users each at most, 3 batches each


def test_arguments_out_of_range_are_refused(partitioned):
    parts, log = partitioned
    with pytest.raises(bseq.UsageError, match="give the vocabulary"):
        bseq.HistoryStream(parts, RECIPE, 4)
    for wrong in ({"batch_users": 0}, {"rank": 2, "world_size": 2}, {"rank": -1}):
        with pytest.raises(bseq.UsageError, match="batch_users = .*, rank .* of"):
            bseq.HistoryStream(log, RECIPE, **{"batch_users": 4, **wrong})
