"""Any number of ranks, sharded any way, learn what an unsharded model learns from the same global batches.

The oracle is the plain module with torch's own optimizers: no planner, no process group, no TorchRec pipeline.
"""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from torch.distributed import checkpoint as dcp
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from bseq_plugin import ITEM_TABLE, Events
from bseq_plugin.data.prepare import prepare
from bseq_plugin.data.training_data import TrainingData
from bseq_plugin.training.checkpoint import Checkpoints, Position
from bseq_plugin.training.trainer import build_task

STEPS = 6
TOLERANCE = 1e-4
WHOLE = {}
SAMPLED = {"negatives": {"kind": "popularity", "n": 12}}
# fewer users than four ranks: one has none
MIXED = {"negatives": {"kind": "mixed", "n": 8}, "training": {"batch": {"users": 3}}}
ANCHORED = {**MIXED, "objective": "prefix", "interests": {"kind": "several", "n": 3, "anchored": True}}
SHARDINGS = {
    "row": "row_wise",
    "table": "table_wise",
    "column": "column_wise",
    "mixed": {"item": "row_wise", "time_gap": "table_wise"},
}


def recipe_for(tiny_recipe, values, optimizer="adagrad"):
    """Batches of 7: neither 2 nor 4 divides it. dim 16 has four pieces of four columns, and is too narrow for products
    in bfloat16, whose sums would differ by more than the tolerance from one split of a batch to another.
    """
    fixed = tiny_recipe.replace(
        encoder={"dropout": 0.0}, vectors={"dim": 16}, training={"batch": {"users": 7}, "table": {"name": optimizer}}
    )
    return fixed.replace(**values)


def table_optimizer(parameters, table):
    if table.name == "rowwise_adagrad":
        return RowWiseAdagrad(parameters, lr=table.rate, eps=1e-8)
    if table.name == "sgd":
        return torch.optim.SGD(parameters, lr=table.rate)
    return torch.optim.Adagrad(parameters, lr=table.rate, eps=1e-8)


def unsharded(frame, recipe, folder=None):
    """(losses, item vectors) of the plain module; its first weights are left in ``folder``."""
    log = prepare(Events.from_frame(frame), recipe)
    torch.manual_seed(7)
    task = build_task(log, "cpu").train()
    if folder is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dcp.save({"model": task.state_dict()}, checkpoint_id=str(folder), no_dist=True)
    tables = list(task.interest_encoder.embedding_collection.parameters())
    known = {id(p) for p in tables}
    dense = [p for p in task.parameters() if id(p) not in known]
    training = log.recipe.training
    optimizers = [
        table_optimizer(tables, training.table),
        torch.optim.AdamW(dense, lr=training.dense.rate, weight_decay=training.dense.weight_decay),
    ]
    losses = []
    for _, batch in zip(range(STEPS), TrainingData(log.training, log.vocabulary, log.recipe).batches(0), strict=False):
        loss, _ = task(batch)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.item())
    return losses, task.interest_encoder.embedding_collection.embeddings[ITEM_TABLE].weight.detach().numpy()


class Matrix:
    """Cells of the matrix as jobs, and what they must give."""

    def __init__(self, frame, source, tiny_recipe, folder):
        self.frame, self.source, self.tiny_recipe, self.folder = frame, source, tiny_recipe, folder
        self.jobs, self.expected = [], {}

    def add(self, world_size, sharding, title, values, optimizer="adagrad", save=False):
        name = f"{world_size}-{sharding}-{title}-{optimizer}"
        recipe = recipe_for(self.tiny_recipe, values, optimizer)
        key = f"{title}-{optimizer}"
        if key not in self.expected:
            self.expected[key] = unsharded(self.frame, recipe, self.folder / key)
        job = {
            "name": name, "do": "learn", "world_size": world_size, "source": str(self.source), "steps": STEPS,
            "recipe": recipe.as_dict(), "sharding": SHARDINGS[sharding], "start": str(self.folder / key),
            "vectors": str(self.folder / f"{name}.npy"), "save": str(self.folder / f"{name}-run") if save else None,
        }  # fmt: skip
        self.jobs.append((job, key))
        return job

    def check(self, results):
        for job, key in self.jobs:
            losses, vectors = self.expected[key]
            found = results[job["name"]]
            assert all("result" in part for part in found), found
            for part in found:
                assert part["result"]["losses"] == pytest.approx(losses, abs=TOLERANCE), job["name"]
            np.testing.assert_allclose(np.load(job["vectors"]), vectors, atol=TOLERANCE, rtol=0, err_msg=job["name"])
            self.check_shards(job, [part["result"]["shards"] for part in found], vectors.shape)

    def check_shards(self, job, shards, shape):
        """It was really sharded: equal results are worth little if every rank has everything."""
        n, sharding = job["world_size"], job["sharding"]
        own = [shard for part in shards for shard in part]
        if sharding == "table_wise":
            assert own == [list(shape)]
        elif sharding == "column_wise":
            assert own == [[shape[0], shape[1] // n]] * n
        else:
            assert sum(rows for rows, _ in own) == shape[0]
            assert max(rows for rows, _ in own) == math.ceil(shape[0] / n)


@pytest.fixture
def matrix(tiny_frame, tiny_source, tiny_recipe, tmp_path):
    return Matrix(tiny_frame, tiny_source, tiny_recipe, tmp_path)


def any_to_any(matrix, saved, loading, ranks, tiny_recipe):
    """Checkpoints of the jobs ``saved`` into every (world size, sharding) of ``loading``, and into a plain module."""
    folders = {job["name"]: job["save"] for job in saved}
    jobs = [
        {
            "name": f"load-{world_size}-{sharding}", "do": "load", "world_size": world_size, "steps": STEPS,
            "source": str(matrix.source), "checkpoints": folders,
            "recipe": recipe_for(tiny_recipe, WHOLE).as_dict(), "sharding": SHARDINGS[sharding],
        }
        for world_size, sharding in loading
    ]  # fmt: skip
    results = ranks(jobs, timeout=800)
    found = [part["result"] for parts in results.values() for part in parts]
    losses = [value["loss"] for of_rank in found for value in of_rank.values()]
    sums = [value["sum"] for of_rank in found for value in of_rank.values()]
    assert len(losses) == sum(n for n, _ in loading) * len(saved)
    assert max(losses) - min(losses) < TOLERANCE, (results, folders)
    assert max(sums) - min(sums) < TOLERANCE * 30 * 16
    vectors = matrix.expected["whole-adagrad"][1]
    log = prepare(Events.from_frame(matrix.frame), recipe_for(tiny_recipe, WHOLE))
    for job in saved:
        plain = build_task(log, "cpu")
        Checkpoints(matrix.folder / job["save"]).load_plain(plain, Position(1))
        table = plain.interest_encoder.embedding_collection.embeddings[ITEM_TABLE].weight.detach().numpy()
        np.testing.assert_allclose(table, vectors, atol=TOLERANCE, rtol=0)


def test_two_and_four_ranks_learn_what_one_unsharded_model_learns(matrix, ranks, tiny_recipe):
    """Some cells of the matrix below, and checkpoints from each of them into others."""
    saved = [
        matrix.add(2, "row", "whole", WHOLE, save=True),
        matrix.add(4, "column", "whole", WHOLE, save=True),
        matrix.add(2, "mixed", "whole", WHOLE, save=True),
    ]
    matrix.add(4, "row", "mixed", MIXED, "rowwise_adagrad")
    matrix.add(2, "table", "sampled", SAMPLED, "rowwise_adagrad")
    matrix.add(4, "row", "anchored", ANCHORED)
    matrix.check(ranks([job for job, _ in matrix.jobs]))
    any_to_any(matrix, saved, [(1, "table"), (2, "column"), (4, "row")], ranks, tiny_recipe)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_cell_of_the_matrix(matrix, ranks, tiny_recipe):
    """1, 2, 4 ranks x row, table, column, mixed x whole catalogue, sampled, mixed sample; checkpoints any to any."""
    saved = []
    for world_size, sharding in itertools.product((1, 2, 4), SHARDINGS):
        saved.append(matrix.add(world_size, sharding, "whole", WHOLE, save=True))
        matrix.add(world_size, sharding, "sampled", SAMPLED)
        matrix.add(world_size, sharding, "mixed", MIXED, "sgd")
        if sharding != "column" or world_size == 1:  # refused: see test_refusals
            matrix.add(world_size, sharding, "rowwise", SAMPLED, "rowwise_adagrad")
    matrix.check(ranks([job for job, _ in matrix.jobs], timeout=900))
    any_to_any(matrix, saved, list(itertools.product((1, 2, 4), SHARDINGS)), ranks, tiny_recipe)
