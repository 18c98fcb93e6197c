"""The best epoch as a plain model, without any process holding more of the item table than its own shard."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from torch import Tensor

from bseq_plugin.data.prepare import PreparedLog
from bseq_plugin.model.interest_model import ITEM_WEIGHT, save_parts
from bseq_plugin.model.task import SequenceInterestTask
from bseq_plugin.model.tensor_file import create, write
from bseq_plugin.training.checkpoint import Checkpoints, Position
from bseq_plugin.training.distributed import World
from bseq_plugin.training.run import Run
from bseq_plugin.training.sharding import ShardedTask

ROWS = 1 << 16  # of the item table, read at a time
ITEM_KEY = f"interest_encoder.{ITEM_WEIGHT}"


def export_model(
    log: PreparedLog, sharded: ShardedTask, checkpoints: Checkpoints, best: Position, run: Run, here: World
) -> None:
    """Leave ``RUN/model`` (see ``InterestModel``): every rank writes the rows, or columns, that it holds. Collective.

    ``sharded`` has the weights of ``best``.
    """
    aside = run.path / ".model"
    here.on_first(lambda: _begin(log, checkpoints, best, aside))
    here.on_all(lambda: _write_shards(sharded, aside / "items.safetensors"))
    here.on_first(lambda: _show(aside, run.path / "model"))


def _begin(log: PreparedLog, checkpoints: Checkpoints, best: Position, aside: Path) -> None:
    """All but the item rows, whose file is made in full size."""
    # a table of no items: the checkpoint is read for everything else
    n_event_types, width = len(log.vocabulary.event_types), None
    if log.item_vectors is not None:
        width = log.item_vectors.vectors_VE.shape[1]
    plain = SequenceInterestTask(log.recipe, 0, n_event_types, attributes=log.attributes, item_vectors=width)
    checkpoints.load_plain(plain, best, leave_out=ITEM_KEY)
    # attributes are in the item rows then; what item encoders say of items that come later has still to be projected
    state = {k: v for k, v in plain.interest_encoder.state_dict().items() if "item_tower.attribute" not in k}
    del state[ITEM_WEIGHT]
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    save_parts(aside, log.recipe, log.vocabulary, state, log.trained_until_us)
    priors = log.item_priors
    shapes = {"item_table": (log.vocabulary.n_items + 1, log.recipe.vector_dim)}
    if priors is not None:
        shapes["item_priors"] = (priors.shape[0], priors.shape[1])
    create(aside / "items.safetensors", shapes)
    if priors is not None:
        write(aside / "items.safetensors", "item_priors", torch.from_numpy(priors))


@torch.no_grad()
def _write_shards(sharded: ShardedTask, path: Path) -> None:
    tower = sharded.task.interest_encoder.item_tower
    for shard in sharded.model.state_dict()[ITEM_KEY].local_shards():
        row, column = shard.metadata.shard_offsets
        for start in range(0, len(shard.tensor), ROWS):
            block_ND: Tensor = shard.tensor[start : start + ROWS].detach().cpu()
            columns = slice(column, column + block_ND.shape[1])
            write(path, "item_table", tower.folded(block_ND, row + start, columns), row + start, column)


def _show(aside: Path, model: Path) -> None:
    for path in [*aside.iterdir(), aside]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    shutil.rmtree(model, ignore_errors=True)
    aside.rename(model)
