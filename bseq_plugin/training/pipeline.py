"""TorchRec's train pipeline over the batches of an epoch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torchrec.distributed.train_pipeline import TrainPipelineBase, TrainPipelineSparseDist
from torchrec.distributed.train_pipeline.train_pipelines import TrainPipeline

from bseq_plugin.training.distributed import World
from bseq_plugin.training.sharding import ShardedTask


@contextmanager
def pipelined(sharded: ShardedTask, here: World) -> Iterator[TrainPipeline[Any, Any]]:
    """``progress(batches)`` makes a step; the model is as it was afterwards.

    ``TrainPipelineSparseDist`` starts look-ups one batch ahead, while others compute. One process on a CPU has nothing
    to wait for meanwhile, and ``TrainPipelineBase`` spares it the bookkeeping: some 2 % of a step of short histories.
    """
    if here.size == 1 and here.device.type == "cpu":
        yield TrainPipelineBase(sharded.model, sharded.optimizer, here.device)
        return
    pipeline = TrainPipelineSparseDist(sharded.model, sharded.optimizer, here.device)
    yield pipeline
    pipeline.detach()
