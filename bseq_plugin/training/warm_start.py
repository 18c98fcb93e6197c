"""Begin a run with what another one has learned: every id keeps its row, wherever the row now stands.

Known items and event types are found by id; new items begin at the mean of the known ones, with the optimizer's memory
of a row that was never trained. With item encoders a new item begins where its neighbours in the finished model are.
Nothing is taken over by place: a vocabulary that has grown by one item in front would shift every row.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from bseq_plugin.data.event_features import TABLE_ROWS
from bseq_plugin.data.items import ItemVectors
from bseq_plugin.data.prepare import PreparedLog
from bseq_plugin.errors import RecipeError
from bseq_plugin.events.events import EVENT_TYPE
from bseq_plugin.events.vocabulary import Vocabulary
from bseq_plugin.model.encoder import ITEM_TABLE
from bseq_plugin.model.interest_model import InterestModel
from bseq_plugin.model.neighbours import NeighbourItems, directed
from bseq_plugin.model.run import Run
from bseq_plugin.recipe.merge import different_keys, value_at
from bseq_plugin.recipe.recipe import Recipe
from bseq_plugin.training.checkpoint import Checkpoints, Position
from bseq_plugin.training.sharding import ShardedTask

# Sections that decide the shapes and the meaning of weights, and what in them does not.
SHARED = ("encoder", "vectors", "events", "items", "interests")
FREE = {
    "encoder.dropout",
    "items.min_count",
    "items.own_direction",
    "items.prior_events",
    "vectors.init",
    "vectors.similarity.temperature",
}
TABLES = "interest_encoder.embedding_collection.embeddings"
ROWS = 1 << 16


@dataclass(frozen=True)
class WarmStart:
    """A finished run whose weights another one begins with. Raises RunError (not finished) or RecipeError."""

    run: Run
    model: InterestModel
    item_vectors: ItemVectors | None  # of the new log

    @classmethod
    def open(cls, path: str | Path, log: PreparedLog) -> WarmStart:
        """Read ``path`` and see that it fits ``log``'s recipe."""
        run, model = Run(Path(path)), InterestModel.from_run(path)
        different = _different(model.recipe, log.recipe)
        if different:
            raise RecipeError(
                f"warm start from {path}: it has another {', '.join(different)}; use the same, or start cold"
            )
        if log.recipe.items.attributes:
            raise RecipeError(
                "warm start with items.attributes is not offered: a finished model has them summed into its item rows, "
                "and they would be added twice; start cold"
            )
        _check_item_encoders(path, model, log)
        return cls(run, model, log.item_vectors)

    @torch.no_grad()
    def apply(self, sharded: ShardedTask, vocabulary: Vocabulary) -> int:
        """Put the old weights into a task that has just been sharded; the number of items taken over.

        Every rank fills its own shards; collective only in that every rank has to do it.
        """
        state = sharded.model.state_dict()
        old = {f"interest_encoder.{name}": value for name, value in self.model.encoder.state_dict().items()}
        known = self.model.vocabulary
        rows = {
            ITEM_TABLE: _old_rows(known.item_rows(vocabulary.item_ids)),
            EVENT_TYPE: _old_rows(known.event_type_rows(list(vocabulary.event_types))),
        }
        for name, value in state.items():
            if not name.startswith(TABLES):
                if name in old:
                    value.copy_(old[name])
                continue
            table = name.removeprefix(f"{TABLES}.").removesuffix(".weight")
            old_rows = rows.get(table, np.arange(len(old[name])) if table in TABLE_ROWS else None)
            if old_rows is not None:
                _fill(value, old[name], old_rows)
        self._place_new(state[f"{TABLES}.{ITEM_TABLE}.weight"], rows[ITEM_TABLE], vocabulary)
        self._fill_optimizer(sharded, rows)
        return int((rows[ITEM_TABLE][1:] > 0).sum())

    def _place_new(self, table: object, old_rows: np.ndarray, vocabulary: Vocabulary) -> None:
        """Place new items among those that are like them; one of which nothing is known keeps the mean."""
        neighbours: NeighbourItems | None = self.model.encoder.item_tower.encoded
        if self.item_vectors is None or neighbours is None:
            return
        new = np.flatnonzero((old_rows < 0) & self.item_vectors.vectors_VE.any(1))
        vectors_NE = torch.from_numpy(self.item_vectors.vectors_VE[new])
        table_VD, counts_V = self.model.item_table_VD, self.model.vocabulary.item_counts
        guess_ND = neighbours.rows_of(vectors_NE, table_VD, counts_V)
        ids = vocabulary.item_ids[new - 1].tolist()
        said_ND = directed(guess_ND, ids, table_VD, counts_V, self.model.recipe.items.own_direction)
        at_N = torch.from_numpy(new)
        for shard in table.local_shards():  # type: ignore[attr-defined]
            first, start = shard.metadata.shard_offsets
            own_N = (at_N >= first) & (at_N < first + len(shard.tensor))
            columns = slice(start, start + shard.tensor.shape[1])
            shard.tensor[at_N[own_N] - first] = said_ND[own_N, columns].to(shard.tensor)

    def _fill_optimizer(self, sharded: ShardedTask, rows: dict[str, np.ndarray]) -> None:
        """Fill Adagrad's sums: without them the first steps would be as large as for rows that were never trained."""
        if self.run.info.get("from_host"):  # its optimizer is the host's
            return
        path = Checkpoints(self.run.path).path(Position(self.run.info["best_epoch"]))
        there = FileSystemReader(str(path)).read_metadata().state_dict_metadata
        for name, of_table in sharded.model.fused_optimizer.state_dict()["state"].items():
            table = name.rpartition("embeddings.")[2].removesuffix(".weight")
            for key, value in of_table.items():
                flat = f"optimizer.state.{name}.{key}"
                if flat not in there or not hasattr(value, "local_shards"):
                    continue
                old = torch.zeros(cast(TensorStorageMetadata, there[flat]).size)
                dcp.load({flat: old}, checkpoint_id=str(path), no_dist=True)  # type: ignore[attr-defined]
                old_rows = rows.get(table, np.arange(len(old)))
                _fill(value, old, old_rows, new=0.0)


def _old_rows(rows: np.ndarray) -> np.ndarray:
    """Return the old row of every new one of a table; -1 for a new id. Row 0 stays that of unknown ids."""
    return np.concatenate([[0], np.where(rows > 0, rows, -1)])


def _different(old: Recipe, new: Recipe) -> list[str]:
    """Return what keeps the weights of one recipe from another, with the value of the old one."""
    before, now = ({name: recipe.as_dict()[name] for name in SHARED} for recipe in (old, new))
    keys = [key for key in different_keys(before, now) if key not in FREE]
    described = [f"{key} ({key} = {value_at(before, key)!r})" for key in keys]
    if old.popularity_days != new.popularity_days:
        described.append(f"objective.popularity_days ({list(old.popularity_days)})")
    return described


def _check_item_encoders(path: str | Path, model: InterestModel, log: PreparedLog) -> None:
    neighbours: NeighbourItems | None = model.encoder.item_tower.encoded
    if neighbours is None or log.item_vectors is None or neighbours.vectors_identity == log.item_vectors.identity:
        return
    raise RecipeError(
        f"warm start from {path}: its item encoders had other weights, so that the vectors of new items can't be "
        "compared with those of its items; use the same weights, or start cold"
    )


def _fill(sharded: object, old: Tensor, old_rows: np.ndarray, new: float | None = None) -> None:
    """Fill this rank's part of a table (or of a state of its rows): old rows by number, ``new`` or the mean at -1."""
    mean = old[1:].double().mean(0).float() if new is None else torch.full(old.shape[1:], new)
    for shard in sharded.local_shards():  # type: ignore[attr-defined]
        first = shard.metadata.shard_offsets[0]
        columns = slice(None)
        if old.dim() == 2:
            start = shard.metadata.shard_offsets[1]
            columns = slice(start, start + shard.tensor.shape[1])
        for start in range(0, len(shard.tensor), ROWS):
            block = shard.tensor[start : start + ROWS]
            wanted = torch.from_numpy(old_rows[first + start : first + start + len(block)])
            values = old[wanted.clamp_min(0)]
            values[wanted < 0] = mean
            block.copy_(values[:, columns] if old.dim() == 2 else values)
