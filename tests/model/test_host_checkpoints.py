"""A host's own checkpoint, written by several processes, becomes a run on any other number of them."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import distributed as dist
from torch import nn
from torch.distributed import checkpoint as dcp
from torchrec import KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.distributed.types import ShardingEnv

import bseq_plugin as bseq

N_ITEMS, DIM, LENGTH = 40, 8, 5
IDS = np.arange(N_ITEMS)
RECIPE = bseq.Recipe(
    encoder={"name": "causal", "max_length": LENGTH, "n_blocks": 1, "dropout": 0.0},
    vectors={"dim": DIM},
    events={"features": ()},
    training={"epochs": 1, "batch": {"users": 16}},
)


class Host(nn.Module):
    def __init__(self):
        super().__init__()
        self.interest = bseq.SequenceInterestEncoder(RECIPE, N_ITEMS, item_keys=["target"], device="meta")

    def forward(self, batch):
        interest, items = self.interest.interest_and_items(batch)
        return nn.functional.cross_entropy(interest["user_interest"] @ items["target"].T, torch.arange(batch.stride()))


def batch(seed):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, LENGTH + 1, (32,), generator=generator)
    items = torch.randint(1, N_ITEMS + 1, (int(lengths.sum()),), generator=generator)
    both = torch.cat([items, items[lengths.cumsum(0) - 1] % N_ITEMS + 1])
    return KeyedJaggedTensor(["event", "target"], both, lengths=torch.cat([lengths, torch.ones_like(lengths)]))


def log():
    rows = np.random.default_rng(1).integers(0, N_ITEMS, (30, LENGTH + 2))
    times = pd.Timestamp("2026-01-01", tz="UTC") + pd.to_timedelta(np.arange(rows.size), "min")
    frame = {"user_id": np.repeat(np.arange(30), rows.shape[1]), "item_id": IDS[rows.ravel()], "timestamp": times}
    return bseq.Events.from_frame(pd.DataFrame(frame))


def sharded(way, env=None):
    sharders = [EmbeddingCollectionSharder({"optimizer": EmbOptimType.EXACT_SGD, "learning_rate": 0.3})]
    constraints = {"item": ParameterConstraints(sharding_types=[way], min_partition=4)}
    topology = Topology(world_size=dist.get_world_size(), compute_device="cpu")
    host = Host()
    plan = EmbeddingShardingPlanner(topology=topology, constraints=constraints).collective_plan(host, sharders)
    return DistributedModelParallel(host, env, torch.device("cpu"), plan, sharders)


def a_process(job, rank, size, folder, way):
    """Train and save, or load, or load in place; then make a run. What is asked of the items may be rank 1's alone."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store-{job}", size), rank=rank, world_size=size)
    env = ShardingEnv(size, rank, dist.group.WORLD, output_dtensor=True) if job == "as dtensors" else None
    host = sharded(way, env)
    if job in ("train", "rank 1 alone", "as dtensors"):
        weight = 0.0 if job == "rank 1 alone" and rank == 0 else 1.0
        for step in range(20):
            (weight * host(batch(step * size + rank))).backward()
        if job == "train":
            dcp.save({"model": host.state_dict()}, checkpoint_id=f"{folder}/checkpoint")
    else:
        state = {"model": host.state_dict()}
        dcp.load(state, checkpoint_id=f"{folder}/checkpoint")
        if job == "load":
            host.load_state_dict(state["model"])
    learned = host.module.interest.learned.told()
    vocabulary = bseq.Vocabulary(IDS, np.ones(N_ITEMS, np.int64), ())
    histories = bseq.Sequences.from_events(log(), vocabulary)
    run = bseq.Run.from_host(host, f"{folder}/{job}", histories=histories, vocabulary=vocabulary)
    told = run.model().digest
    try:  # a mistake that one rank alone would see is told on all
        bseq.Run.from_host(host, f"{folder}/{job}", histories=histories, vocabulary=vocabulary)
    except bseq.RunError as error:
        told += f" {error} {learned}"
    print(json.dumps(told), flush=True)
    dist.barrier()
    dist.destroy_process_group()


def together(job, size, folder, way):
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, job, str(rank), str(size), str(folder), way], stdout=subprocess.PIPE
        )
        for rank in range(size)
    ]
    try:
        return [json.loads(process.communicate(timeout=120)[0].splitlines()[-1]) for process in ranks]
    finally:
        for process in ranks:
            process.kill()


@pytest.mark.parametrize(
    ("way", "loaded_on", "loaded_as"), [("row_wise", 1, "column_wise"), ("column_wise", 4, "row_wise")]
)
def test_a_checkpoint_of_two_processes_is_a_run_on_any_number(way, loaded_on, loaded_as, tmp_path):
    """The same bytes, and on every rank the same error."""
    (trained, *others) = together("train", 2, tmp_path, way)
    told = together("load", loaded_on, tmp_path, loaded_as)
    assert [trained.split()[0]] * (1 + loaded_on) == [text.split()[0] for text in (*others, *told)]
    assert all("is not empty; give a new folder" in text for text in (trained, *others, *told))


def test_a_checkpoint_that_is_loaded_in_place_is_the_same_run(tmp_path):
    (trained, *_) = together("train", 2, tmp_path, "row_wise")
    told = together("in place", 2, tmp_path, "row_wise")
    assert {text.split()[0] for text in told} == {trained.split()[0]}
    assert all("(True, True)" in text for text in told)


@pytest.mark.parametrize("way", ["row_wise", "column_wise", "table_wise"])
def test_tables_that_are_dtensors_are_gathered(way, tmp_path):
    """41 rows on two ranks are 21 and 20: no even shards."""
    wanted, _ = together("train", 2, tmp_path, way)
    assert together("as dtensors", 2, tmp_path, way)[0].split()[0] == wanted.split()[0]


def test_what_one_rank_has_seen_of_a_loss_counts(tmp_path):
    first, second = together("rank 1 alone", 2, tmp_path, "row_wise")
    assert "(False, False)" in first
    assert "(True, True)" in second


def test_another_training_begins_with_a_hosts_weights(tmp_path):
    """Every item keeps its row, whatever place it has in the new vocabulary."""
    together("train", 1, tmp_path, "row_wise")
    run = bseq.Run.open(tmp_path / "train")
    still = RECIPE.replace(training={"table": {"name": "sgd", "rate": 1e-12}, "dense": {"rate": 1e-12}}, split="none")
    warm = bseq.train(log(), still, tmp_path / "warm", warm_start=run.path, progress=False)
    before, after = run.model(), warm.model()
    rows = before.vocabulary.item_rows(after.vocabulary.item_ids)
    torch.testing.assert_close(after.item_table_VD[1:], before.item_table_VD[rows], rtol=0, atol=1e-6)


if __name__ == "__main__":
    a_process(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5])
