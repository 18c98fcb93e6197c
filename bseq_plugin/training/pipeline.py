"""TorchRec's train pipeline, an epoch at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor
from torchrec.distributed.train_pipeline import TrainPipelineBase, TrainPipelineSparseDist

from bseq_plugin.data.batches import Batch
from bseq_plugin.distributed import World
from bseq_plugin.training.sharding import ShardedTask

Outputs = dict[str, Tensor]


class EpochPipeline:
    """Steps of a sharded task: forward, backward, update.

    ``TrainPipelineSparseDist`` exchanges the ids of a batch with other ranks while the one before it is computed. One
    process on a CPU has nobody to wait for, and ``TrainPipelineBase`` spares it the bookkeeping.
    """

    def __init__(self, sharded: ShardedTask, here: World) -> None:
        self.model = sharded.model
        kind = TrainPipelineBase if here.size == 1 and here.device.type == "cpu" else TrainPipelineSparseDist
        self.torchrec = kind(sharded.model, sharded.optimizer, here.device)

    def outputs(
        self, batches: Iterator[Batch], before_step: Callable[[int], None] = lambda place: None
    ) -> Iterator[tuple[Outputs, int]]:
        """Yield (what the model gives, number of events) of each batch, after its update.

        ``before_step`` is called with the place of each, 0, 1, ... and of the one that is not there. Afterwards, or
        when the iterator is closed, the model is a plain one again.
        """
        counted: list[int] = []
        read = _counted(batches, counted)
        with self._attached():
            for place in itertools.count():
                before_step(place)
                try:
                    outputs = self.torchrec.progress(read)
                except StopIteration:
                    return
                yield outputs, counted[place]

    @contextmanager
    def _attached(self) -> Iterator[None]:
        """Put back what TorchRec's pipeline for several ranks exchanges: ``forward`` of the sharded modules.

        After an error in a step they are left so: putting them back could fail, and hide the error.
        """
        if isinstance(self.torchrec, TrainPipelineSparseDist):
            self.torchrec.attach(self.model)
        try:
            yield
        except GeneratorExit:  # whoever asked for outputs wants no more
            self._detach()
            raise
        self._detach()

    def _detach(self) -> None:
        if isinstance(self.torchrec, TrainPipelineSparseDist):
            self.torchrec.detach()
        self.torchrec.reset()


def _counted(batches: Iterator[Batch], counted: list[int]) -> Iterator[Batch]:
    """Yield the batches and count their events here, where they come from: the pipeline reads ahead."""
    for batch in batches:
        counted.append(batch.n_events)
        yield batch
