"""From a plain task to a sharded, optimised one."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import nn
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import ModuleSharder
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from bseq_plugin.distributed import World
from bseq_plugin.errors import RecipeError
from bseq_plugin.model.learned import without_record
from bseq_plugin.model.task import SequenceInterestTask
from bseq_plugin.recipe.training import DenseOptimizer, TrainingSettings
from bseq_plugin.training.plan import Sharding, check_device, make_plan

TABLE_OPTIMIZERS = {
    "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
    "adagrad": EmbOptimType.EXACT_ADAGRAD,
    "sgd": EmbOptimType.EXACT_SGD,
    "adam": EmbOptimType.ADAM,
}
RANK_STRIDE = 1_000_003  # seeds of ranks lie apart, and rank 0 keeps the recipe's own


@dataclass(frozen=True)
class ShardedTask:
    """The model under DistributedModelParallel with the optimizer of all its parameters.

    ``dense_optimizers`` are the parts of it for dense parameters; a model may have none.
    """

    model: DistributedModelParallel
    optimizer: CombinedOptimizer
    dense_optimizers: list[KeyedOptimizerWrapper]

    @property
    def task(self) -> SequenceInterestTask:
        """Return the task inside the wrappers of DistributedModelParallel."""
        module: nn.Module = self.model.module
        return cast(SequenceInterestTask, getattr(module, "module", module))

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds of the model and its optimizers: ``model`` is what is exported."""
        return {"model": without_record(self.model.state_dict()), "optimizer": self.optimizer.state_dict()}

    def load(self, values: dict[str, Any]) -> None:
        """Take over what ``state`` gave."""
        self.model.load_state_dict(values["model"])
        self.optimizer.load_state_dict(values["optimizer"])


def shard(task: SequenceInterestTask, training: TrainingSettings, sharding: Sharding, here: World) -> ShardedTask:
    """Plan, shard, and give table rows the fused optimizer and dense parameters AdamW."""
    check_device(sharding, training.table, task.recipe.vectors.table_dim, here.device, here.size)
    fused = {"optimizer": TABLE_OPTIMIZERS[training.table.name], "learning_rate": training.table.rate}
    sharders = [cast(ModuleSharder[nn.Module], EmbeddingCollectionSharder(fused_params=fused))]
    plan = make_plan(task, sharders, sharding, training.table, here)
    # Each rank fills its own shards: from one seed they would all begin with the same rows. Dense parameters, which
    # must be equal, exist already and come from rank 0.
    torch.manual_seed(training.seed + RANK_STRIDE * here.rank)
    with warnings.catch_warnings():
        # torchrec calls DistributedDataParallel in a way that torch has deprecated; nobody here can act on it
        warnings.filterwarnings("ignore", category=FutureWarning, module="torchrec")
        # one process has nobody to average dense gradients with, and DistributedDataParallel would still copy them
        model = DistributedModelParallel(
            task, device=here.device, plan=plan, sharders=sharders, init_data_parallel=here.size > 1
        )
    parts = _dense_optimizers(dict(in_backward_optimizer_filter(model.named_parameters())), training)
    return ShardedTask(model, CombinedOptimizer([model.fused_optimizer, *parts]), parts)


def _dense_optimizers(parameters: dict[str, Any], training: TrainingSettings) -> list[KeyedOptimizerWrapper]:
    """Return AdamW, and row-wise Adagrad for the attribute table, whose rows are learned like those of the item table.

    Either may have nothing to do (``mean`` without options learns its tables alone), and is then left out. Raises
    RecipeError if AdamW has nothing to do and was given settings.
    """
    tables = {name: value for name, value in parameters.items() if "item_tower.attribute_table" in name}
    rest = {name: value for name, value in parameters.items() if name not in tables}
    optimizers = []
    if rest:
        adam = partial(torch.optim.AdamW, lr=training.dense.rate, weight_decay=training.dense.weight_decay, fused=True)
        optimizers.append(KeyedOptimizerWrapper(rest, adam))
    elif training.dense != DenseOptimizer():
        raise RecipeError(
            f"training.dense ({training.dense}) is for parameters beside the tables, and this model has none; set "
            f"{DenseOptimizer()}"
        )
    if tables:
        optimizers.append(KeyedOptimizerWrapper(tables, partial(RowWiseAdagrad, lr=training.table.rate)))
    return optimizers
