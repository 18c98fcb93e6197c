"""Which rank holds which part of which table: what is refused, and what TorchRec's planner is asked.

Everything that a device can't do is refused here, on every rank and before anything is planned: a planner that raises
on one rank leaves the others waiting.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import nn
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.distributed.types import ModuleSharder, ShardingPlan, ShardingType
from torchrec.modules.embedding_configs import EmbeddingConfig

from bseq_plugin.distributed import World
from bseq_plugin.errors import RecipeError
from bseq_plugin.model.task import SequenceInterestTask
from bseq_plugin.recipe.training import TableOptimizer

RESERVED_STORAGE = 0.15  # share of the device that the planner leaves for activations and dense parameters
COLUMNS = 4  # fbgemm's kernels work on pieces of four columns
# How tables lie on the processes: one word for all, or table -> word. It changes nothing that is learned.
Sharding = str | Mapping[str, str]
ROW, TABLE, COLUMN = ShardingType.ROW_WISE.value, ShardingType.TABLE_WISE.value, ShardingType.COLUMN_WISE.value
OFFERED = ("auto", ROW, TABLE, COLUMN)
# What TorchRec knows besides, and why it is not offered.
ONLY_BAGS = "TorchRec shards sequence tables (EmbeddingCollection) by row, table or column only"
NOT_OFFERED = {
    "data_parallel": "fbgemm's look-up for copied tables pools a history instead of giving one row an event on CPU",
    "table_row_wise": ONLY_BAGS,
    "table_column_wise": ONLY_BAGS,
    "grid_shard": ONLY_BAGS,
}
# numbers that an optimizer keeps: (a row, a number of the row)
STATE = {"rowwise_adagrad": (1, 0), "adagrad": (0, 1), "sgd": (0, 0), "adam": (0, 2)}


def table_names(task: SequenceInterestTask) -> list[str]:
    """Return the names of a model's embedding tables."""
    return [table.name for table in task.interest_encoder.embedding_collection.embedding_configs()]


def sharding_types(sharding: Sharding, tables: Sequence[str]) -> dict[str, list[str]]:
    """Return table -> the ways of sharding the planner may choose from.

    Raises RecipeError for a table there is not, and for a way of sharding that is not offered, with the reason.
    """
    given = dict(sharding) if isinstance(sharding, Mapping) else dict.fromkeys(tables, sharding)
    for name in given.values():
        if name not in OFFERED:
            reason = NOT_OFFERED.get(name, f"there are {', '.join(OFFERED)}")
            raise RecipeError(
                f"sharding = {name!r} is not offered: {reason}; use 'row_wise' (or 'table_wise' for a small table)"
            )
    unknown = sorted(set(given) - set(tables))
    if unknown:
        raise RecipeError(
            f"sharding names the table(s) {', '.join(unknown)}, which this model does not have; its tables are: "
            f"{', '.join(tables)}"
        )
    # columns are cut only where it is asked for: it rules out optimizers and widths (see check_device)
    auto = [ROW, TABLE]
    return {name: auto if given.get(name, "auto") == "auto" else [given[name]] for name in tables}


def check_device(
    sharding: Sharding, table: TableOptimizer, table_dim: int, device: torch.device, world_size: int = 1
) -> None:
    """Refuse what the device can't do with these settings. Raises RecipeError with the reason and the alternative."""
    if device.type == "cpu" and table.name == "adam":
        raise RecipeError(
            "training.table.name = 'adam' is not fused on CPU (fbgemm has SGD, Adagrad and row-wise Adagrad there); "
            "use training.table.name = 'rowwise_adagrad'"
        )
    given = sharding.values() if isinstance(sharding, Mapping) else [sharding]
    if COLUMN not in given or world_size == 1:
        return
    if table.name == "rowwise_adagrad":
        raise RecipeError(
            f"sharding = 'column_wise' on {world_size} processes does not go with training.table.name = "
            "'rowwise_adagrad': it keeps one number a row, and a row in pieces would have one for each, so that the "
            "run would learn something else than on one process; use training.table.name = 'adagrad', or sharding = "
            "'row_wise'"
        )
    if table_dim % (COLUMNS * world_size):
        fitting = [n for n in range(1, table_dim // COLUMNS + 1) if table_dim % (COLUMNS * n) == 0]
        raise RecipeError(
            f"sharding = 'column_wise' can't cut rows of {table_dim} into {world_size} pieces of whole fours; "
            f"use {' or '.join(map(str, fitting)) or 'one'} process(es), another vectors.dim, or sharding = 'row_wise'"
        )


def check_memory(sharding: Sharding, optimizer: TableOptimizer, tables: Sequence[EmbeddingConfig], here: World) -> None:
    """Refuse tables that the ranks of this machine can't hold. Raises RecipeError with the figures."""
    types = sharding_types(sharding, [table.name for table in tables])
    of_row, of_number = STATE[optimizer.name]
    needed = 0.0
    for table in tables:
        numbers = table.num_embeddings * (of_row + table.embedding_dim * (1 + of_number))
        needed += 4 * numbers / (1 if types[table.name] == [TABLE] else here.size)
    limit = device_bytes(here) * (1 - RESERVED_STORAGE)
    if needed > limit:
        raise RecipeError(
            f"the tables and their optimizer need {needed / 2**30:.1f} GiB on a process, and it has "
            f"{limit / 2**30:.1f} GiB for them; use sharding = 'row_wise' on more processes (on more machines), a "
            "smaller vectors.dim, or a larger items.min_count"
        )


def device_bytes(here: World) -> int:
    """Return the memory that one rank may take: of its GPU, or its share of the machine's (or container's) RAM."""
    if here.device.type == "cuda":
        return int(torch.cuda.get_device_properties(here.device).total_memory)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text(encoding="ascii").strip()).isdecimal():
        total = min(total, int(text))
    return total // int(os.environ.get("LOCAL_WORLD_SIZE", here.size))


def make_plan(
    task: SequenceInterestTask,
    sharders: list[ModuleSharder[nn.Module]],
    sharding: Sharding,
    optimizer: TableOptimizer,
    here: World,
) -> ShardingPlan:
    """Return the plan, made on rank 0 and equal on all. Collective. Raises RecipeError on all ranks if none exists."""
    tables = task.interest_encoder.embedding_collection.embedding_configs()

    def plan() -> ShardingPlan:
        check_memory(sharding, optimizer, tables, here)
        types = sharding_types(sharding, [table.name for table in tables])
        constraints = {
            name: ParameterConstraints(
                sharding_types=allowed,
                # else the planner leaves tables of fewer than 128 columns whole
                min_partition=task.recipe.vectors.table_dim // here.size if COLUMN in allowed else None,
            )
            for name, allowed in types.items()
        }
        memory = device_bytes(here)
        planner = EmbeddingShardingPlanner(
            topology=Topology(world_size=here.size, compute_device=here.device.type, hbm_cap=memory, ddr_cap=memory),
            # the planner's default reservation is deprecated in torchrec 1.8
            storage_reservation=FixedPercentageStorageReservation(percentage=RESERVED_STORAGE),
            constraints=constraints,
        )
        try:
            return planner.plan(task, sharders)
        except Exception as error:  # PlannerError, and whatever an estimator meets
            first = next(iter(str(error).splitlines()), type(error).__name__)
            raise RecipeError(
                f"TorchRec's planner finds no plan for sharding = {sharding!r} on {here.size} process(es): "
                f"{first}; use sharding = 'auto'"
            ) from error

    return cast(ShardingPlan, here.on_first(plan))
