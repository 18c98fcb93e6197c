"""The pooled kernel against the kernel it stands in for, and against Adagrad written out in float64; and who has it."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("fbgemm_gpu")
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    EmbeddingLocation,
    PoolingMode,
    SplitTableBatchedEmbeddingBagsCodegen,
    WeightDecayMode,
)

import bseq_plugin
from bseq_plugin.training.row_update import SEQUENCE_UPDATE, pooled_row_update
from bseq_plugin.training.trainer import Trainer

ROWS, DIM, RATE, EPS = (7, 4), 8, 0.3, 1e-4
FEATURES = (0, 0, 1)  # tables that three keys look up: two share one


def look_up(**options):
    tables = [(rows, DIM, EmbeddingLocation.HOST, ComputeDevice.CPU) for rows in ROWS]
    module = SplitTableBatchedEmbeddingBagsCodegen(
        tables,
        feature_table_map=list(FEATURES),
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=RATE,
        eps=EPS,
        pooling_mode=PoolingMode.NONE,
        **options,
    )
    generator = torch.Generator().manual_seed(0)
    module.weights_host.data.normal_(generator=generator)
    return module


def trained(ids, **options):
    """(weights, sums of squares) after two updates with gradients that differ from place to place."""
    module = look_up(**options)
    lengths = [len(part) for part in ids]
    indices = torch.tensor([row for part in ids for row in part], dtype=torch.int64)
    offsets = torch.tensor([0, *np.cumsum(lengths)])
    for step in range(2):
        out = module(indices, offsets)
        out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(step)))
    return module.weights_host.detach().clone(), module.momentum1_host.clone()


def by_hand(ids):
    weights = look_up().weights_host.detach().double()
    tables = list(weights.split([rows * DIM for rows in ROWS]))
    tables = [table.view(-1, DIM).clone() for table in tables]
    sums = [torch.zeros(rows, dtype=torch.float64) for rows in ROWS]
    for step in range(2):
        n = sum(map(len, ids))
        grads = torch.randn(n, DIM, generator=torch.Generator().manual_seed(step)).double()
        total = [torch.zeros_like(table) for table in tables]
        places = [(table, row) for table, part in zip(FEATURES, ids, strict=True) for row in part]
        for grad, (table, row) in zip(grads, places, strict=True):
            total[table][row] += grad
        for table, row in set(places):
            sums[table][row] += total[table][row].square().mean()
            tables[table][row] -= RATE * total[table][row] / (sums[table][row].sqrt() + EPS)
    return torch.cat([table.flatten() for table in tables]), torch.cat(sums)


IDS = st.tuples(
    st.lists(st.integers(0, ROWS[0] - 1), max_size=20),
    st.lists(st.integers(0, ROWS[0] - 1), max_size=20),
    st.lists(st.integers(0, ROWS[1] - 1), max_size=20),
)


@settings(max_examples=60, deadline=None)
@given(ids=IDS)
def test_updates_rows_as_the_definition_and_as_fbgemm_do(ids):
    theirs = trained(ids)
    with pooled_row_update() as replaced:
        assert replaced
        ours = trained(ids)
    for one, other, exact in zip(ours, theirs, by_hand(ids), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(one.double(), exact, rtol=1e-4, atol=1e-5)


def test_it_is_used_only_while_open(monkeypatch):
    from bseq_plugin.training import row_update

    calls = []
    pooled = row_update._pooled
    monkeypatch.setattr(row_update, "_pooled", lambda **arguments: (calls.append(1), pooled(**arguments)))
    ids = ([1, 1], [2], [3])
    trained(ids)
    assert not calls
    with pooled_row_update():
        trained(ids)
    assert len(calls) == 4  # two tables, two steps
    trained(ids)
    assert len(calls) == 4


def test_what_the_pooled_kernel_can_not_do_stays_where_it_was():
    ids = ([1, 1, 4], [2], [3, 3])
    decay = {"weight_decay": 0.1, "weight_decay_mode": WeightDecayMode.L2}
    theirs = trained(ids, **decay)
    with pooled_row_update():
        ours = trained(ids, **decay)
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    assert not torch.equal(theirs[0], trained(ids)[0])


def test_an_unknown_fbgemm_is_left_alone(monkeypatch):
    from bseq_plugin.training import row_update

    monkeypatch.setitem(row_update.ARGUMENTS, row_update.POOLED_UPDATE, "something else")
    with pooled_row_update() as replaced:
        assert not replaced
        trained(([1], [2], [3]))


def registered():
    """Every kernel of the update that torch's dispatcher knows, with the file and the line it comes from."""
    return torch._C._dispatch_dump(f"fbgemm::{SEQUENCE_UPDATE}")


def seen_while_training(monkeypatch, then=lambda: None):
    """What is registered at each step of a ``Trainer``; ``then`` is called behind the first one."""
    seen, set_rate = [], Trainer._set_learning_rate

    def noting(self, step):
        seen.append(registered())
        if len(seen) > 1:
            then()
        set_rate(self, step)

    monkeypatch.setattr(Trainer, "_set_learning_rate", noting)
    return seen


class Broken(Exception):
    pass


def breaks():
    raise Broken


def test_train_replaces_the_kernel_while_it_runs_and_puts_it_back(tiny_frame, tiny_recipe, tmp_path, monkeypatch):
    events, before = bseq_plugin.Events.from_frame(tiny_frame), registered()
    with monkeypatch.context() as patch:
        seen = seen_while_training(patch)
        bseq_plugin.train(events, tiny_recipe, tmp_path / "fast", progress=False)
    assert len(seen) > 1
    assert all(one != before and "row_update.py" in one for one in seen)
    assert registered() == before
    with monkeypatch.context() as patch:
        seen_while_training(patch, breaks)
        with pytest.raises(Broken):
            bseq_plugin.train(events, tiny_recipe, tmp_path / "broken", progress=False)
    assert registered() == before


def test_without_it_fbgemm_is_left_alone_and_learns_the_same(
    tiny_frame, tiny_recipe, tmp_path, monkeypatch, read_lines
):
    events, before = bseq_plugin.Events.from_frame(tiny_frame), registered()
    fast = bseq_plugin.train(events, tiny_recipe, tmp_path / "fast", progress=False)
    seen = seen_while_training(monkeypatch)
    own = bseq_plugin.train(events, tiny_recipe, tmp_path / "own", progress=False, fast_row_update=False)
    assert set(seen) == {before}
    assert registered() == before
    losses = [[line["loss"] for line in read_lines(run.path)] for run in (fast, own)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_the_command_has_the_switch(bseq, tiny_source, tiny_settings, tmp_path, monkeypatch):
    seen, before = seen_while_training(monkeypatch), registered()
    for words, replaced in ((["--no-fast-row-update"], False), ([], True)):
        seen.clear()
        code, _, err = bseq("train", tiny_source, "--out", tmp_path / str(replaced), *tiny_settings, *words)
        assert code == 0, err
        assert {one != before for one in seen} == {replaced}


def test_an_encoder_inside_a_model_of_somebodys_never_replaces_it(monkeypatch):
    """Building, sharding by DistributedModelParallel, pipelining and updating: all that the example does."""
    path = Path(__file__).parents[2] / "examples" / "embed_in_torchrec.py"
    spec = importlib.util.spec_from_file_location("embed_in_torchrec", path)
    example = importlib.util.module_from_spec(spec)
    before, seen = registered(), []
    monkeypatch.setitem(sys.modules, spec.name, example)  # where dataclasses look for it
    spec.loader.exec_module(example)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        recipe = bseq_plugin.Recipe(
            encoder={"name": "mean", "max_length": example.MAX_LENGTH},
            vectors={"dim": example.DIM},
            events={"features": ()},
        )
        ranker = example.Ranker(bseq_plugin.SequenceInterestEncoder(recipe, example.N_ITEMS, device="meta"))
        cpu = torch.device("cpu")
        model, optimizer = example.sharded(ranker, cpu)
        for weight in ranker.over_arch.parameters():  # within backward, where tables are updated
            weight.register_hook(lambda gradient: seen.append(registered()))
        pipeline = example.TrainPipelineSparseDist(model, optimizer, cpu, execute_all_batches=True)
        data = example.batches(3)
        for _ in range(3):
            pipeline.progress(data)
    finally:
        torch.distributed.destroy_process_group()
    assert len(seen) >= 3
    assert {*seen, registered()} == {before}
