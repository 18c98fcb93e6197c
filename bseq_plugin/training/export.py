"""The best epoch as a plain model, without any process holding more of the item table than its own shard."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from bseq_plugin.data.interest_files import InterestFiles, TableStream, interest_table
from bseq_plugin.data.partitions import PartitionedSequences
from bseq_plugin.data.prepare import PreparedLog
from bseq_plugin.distributed import World
from bseq_plugin.events.sequences import Sequences
from bseq_plugin.files import put_in_place
from bseq_plugin.model.encoder import SequenceInterestEncoder
from bseq_plugin.model.interest_model import ITEM_WEIGHT, KEYS, save_parts
from bseq_plugin.model.neighbours import NeighbourItems, completed
from bseq_plugin.model.run import Run
from bseq_plugin.model.task import SequenceInterestTask
from bseq_plugin.model.tensor_file import create, write
from bseq_plugin.training.checkpoint import Checkpoints, Position
from bseq_plugin.training.sharding import ShardedTask
from bseq_plugin.training.validation import sharded_interests

ROWS = 1 << 16  # of the item table, read at a time
ITEM_KEY = f"interest_encoder.{ITEM_WEIGHT}"


def export_model(
    log: PreparedLog, sharded: ShardedTask, checkpoints: Checkpoints, best: Position, run: Run, here: World
) -> None:
    """Leave ``RUN/model`` (see ``InterestModel``): every rank writes the rows, or columns, that it holds. Collective.

    ``sharded`` has the weights of ``best``. With item encoders rank 0 then completes the table, a
    block at a time; beside a block it holds one row for each distinct vector of the item encoders.
    """
    aside = run.path / ".model"
    here.on_first(lambda: _begin(log, checkpoints, best, aside))
    here.on_all(lambda: _write_shards(sharded, aside / "items.safetensors"))
    # a warm start began with completed rows: to complete them again would pull them towards their neighbours each day
    if log.item_vectors is not None and not run.info.get("warm_start"):
        here.on_first(lambda: _complete(log, aside))
    here.on_first(lambda: put_in_place(aside, run.path / "model"))


def _begin(log: PreparedLog, checkpoints: Checkpoints, best: Position, aside: Path) -> None:
    """Write all but the item rows, whose file is made in full size."""
    # a table of no items: the checkpoint is read for everything else
    n_event_types, width = len(log.vocabulary.event_types), None
    if log.item_vectors is not None:
        width = log.item_vectors.vectors_VE.shape[1]
    plain = SequenceInterestTask(log.recipe, 0, n_event_types, attributes=log.attributes, item_vectors=width)
    checkpoints.load_plain(plain, best, leave_out=ITEM_KEY)
    # attributes are in the item rows then
    state = {k: v for k, v in plain.interest_encoder.state_dict().items() if "item_tower.attribute" not in k}
    del state[ITEM_WEIGHT]
    neighbours: NeighbourItems | None = plain.interest_encoder.item_tower.encoded
    if log.item_vectors is not None and neighbours is not None:
        state[KEYS] = neighbours.keys_of(torch.from_numpy(log.item_vectors.vectors_VE))
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    save_parts(aside, log.recipe, log.vocabulary, state, log.trained_until_us)
    priors = log.item_priors
    shapes = {"item_table": (log.vocabulary.n_items + 1, log.recipe.vectors.table_dim)}
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


def _complete(log: PreparedLog, aside: Path) -> None:
    path = aside / "items.safetensors"
    with safe_open(aside / "encoder.safetensors", "pt") as file:
        keys_VK = file.get_tensor(KEYS)

    def blocks() -> Iterator[tuple[int, Tensor]]:
        with safe_open(path, "pt") as file:
            rows_VD = file.get_slice("item_table")
            for first in range(0, len(keys_VK), ROWS):
                yield first, rows_VD[first : first + ROWS]

    counts_V, items = log.vocabulary.item_counts, log.recipe.items
    for first, rows_ND in completed(keys_VK, counts_V, items.prior_events, blocks, items.own_direction > 0):
        write(path, "item_table", rows_ND, first)


@torch.no_grad()
def export_interests(
    log: PreparedLog,
    parts: PartitionedSequences,
    encoder: SequenceInterestEncoder,
    run: Run,
    here: World,
    count: Callable[[int], None] = lambda users: None,
) -> None:
    """Leave ``RUN/interests`` (see ``InterestFiles``): every rank encodes the users of its own partitions. Collective.

    Nothing is gathered: item rows come through the sharded tables, a row group of users at a time is in memory.
    ``count`` is told of users that are done.
    """
    files = InterestFiles(run.path / "interests")
    here.on_first(lambda: _empty(files.folder))
    encoder.eval()
    for number in range(here.rank, len(parts.partitions), here.size):  # as many on every rank: see check_streams
        for users in _export_partition(log, parts, number, encoder, files.folder, here):
            count(users)
    here.on_first(lambda: files.seal(run.path / "model", parts.digest))


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def _export_partition(
    log: PreparedLog,
    parts: PartitionedSequences,
    number: int,
    encoder: SequenceInterestEncoder,
    folder: Path,
    here: World,
) -> Iterator[int]:
    n_groups = here.on_all(lambda: len(parts.row_group_users(number)))
    out = TableStream(folder / parts.partitions[number].file)
    for group in range(max(here.gather(n_groups))):
        histories = here.on_all(partial(_read, log, parts, number, group if group < n_groups else None))
        interests_UKD = sharded_interests(encoder, histories or parts.nobody(), log.recipe, here)
        if histories is None:
            here.on_all(lambda: None)
        else:
            here.on_all(partial(_write, out, histories, interests_UKD))
            yield histories.n_users
    here.on_all(out.close)


def _read(log: PreparedLog, parts: PartitionedSequences, number: int, group: int | None) -> Sequences | None:
    return None if group is None else parts.read(number, [group], log.vocabulary)


def _write(out: TableStream, histories: Sequences, interests_UKD: Tensor) -> None:
    out.write(interest_table(histories, interests_UKD.cpu()))
