"""The interests of all users of a log in partitions, written by the processes that hold the sharded model."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bseq_plugin.data.interest_files import InterestFiles, TableStream, interest_table
from bseq_plugin.data.partitions import PartitionedSequences
from bseq_plugin.data.prepare import PreparedLog
from bseq_plugin.data.streams import nobody
from bseq_plugin.events.sequences import Sequences
from bseq_plugin.model.encoder import SequenceInterestEncoder
from bseq_plugin.model.run import Run
from bseq_plugin.training.distributed import World
from bseq_plugin.training.validation import sharded_interests


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
    here.on_first(lambda: _begin(files.folder))
    encoder.eval()
    for number in range(here.rank, len(parts.partitions), here.size):  # as many on every rank: see check_streams
        for users in _export_partition(log, parts, number, encoder, files.folder, here):
            count(users)
    here.on_first(lambda: files.seal(run.path / "model", parts.digest))


def _begin(folder: Path) -> None:
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
    empty = nobody(parts)
    out = TableStream(folder / parts.partitions[number].file)
    for group in range(max(here.gather(n_groups))):
        histories = here.on_all(partial(_read, log, parts, number, group if group < n_groups else None))
        interests_UKD = sharded_interests(encoder, histories or empty, log.recipe, here, empty)
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
