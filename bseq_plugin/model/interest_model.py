"""The trained model as one plain process serves it: no process group, no sharding, no pickle.

On disk (a run's ``model/`` folder, and part of every store version):

    encoder.safetensors   dense parameters and context tables; those of a host's query tower as "query_tower.*"
    items.safetensors     "item_table" float32 [V + 1, D], row 0 for unknown items; "item_priors" [V + 1, P] if P > 0;
                          "item_vectors" [V + 1, O] if a host has a candidate tower
    recipe.json           {"recipe": {...}, "trained_until_us": int or null, "bseq_version": str}, and "query_tower",
                          the layers (``QueryTower``), if a host has one
    vocabulary.parquet
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from bseq_plugin import __version__
from bseq_plugin.errors import RecipeError, RunError, SchemaError, UsageError
from bseq_plugin.events.sequences import Sequences
from bseq_plugin.events.vocabulary import Vocabulary
from bseq_plugin.model.direct import WideModules, direct_interests
from bseq_plugin.model.encoder import ITEM_TABLE, SequenceInterestEncoder
from bseq_plugin.model.items import score_vectors
from bseq_plugin.model.learned import without_record
from bseq_plugin.model.neighbours import NeighbourItems
from bseq_plugin.model.query_tower import StoredTowers
from bseq_plugin.model.tensor_file import create, write
from bseq_plugin.recipe.recipe import Recipe

AXES = "item_tower.encoded.axes_EE"
KEYS = "item_tower.encoded.keys_VK"  # with a row an item, as the item table has
ITEM_WEIGHT: str = f"embedding_collection.embeddings.{ITEM_TABLE}.weight"
EVENTS_PER_CALL = 1 << 13  # bounds memory; large enough that calls cost little beside their arithmetic


@dataclass
class InterestModel:
    """A trained ``SequenceInterestEncoder`` with its item vectors and vocabulary.

    Attributes:
        item_priors_VP: float32 [V + 1, P], popularity columns as of the end of training, None if the recipe has none.
        trained_until_us: time of the newest training event (microseconds, UTC), None for a log without times.
        towers: those of the host that the encoder was trained in; None: it scores with its own item rows.
    """

    recipe: Recipe
    vocabulary: Vocabulary
    encoder: SequenceInterestEncoder
    item_priors_VP: Tensor | None = None
    trained_until_us: int | None = None
    towers: StoredTowers | None = None

    def __post_init__(self) -> None:
        self.encoder.learned.declare(items=self.towers is None)

    @classmethod
    def from_state(
        cls,
        recipe: Recipe,
        vocabulary: Vocabulary,
        state: Mapping[str, Tensor],
        item_priors_VP: Tensor | None,
        trained_until_us: int | None,
        own: bool = True,
    ) -> InterestModel:
        """Make a model of the state of an encoder without attributes. Raises RunError if it does not fit.

        ``own=False`` takes the tensors as they are: tables that are mapped files stay on the disk.
        """
        # tables on the meta device: to fill a million rows with random numbers first would take longer than all else
        width = state[AXES].shape[0] if AXES in state else None
        try:
            encoder = SequenceInterestEncoder(
                recipe, vocabulary.n_items, len(vocabulary.event_types), item_vectors=width, device="meta"
            )
        except RecipeError as error:
            raise RunError(f"the saved encoder does not fit its recipe: {error}") from None
        values = {name: value.detach().clone() if own else value for name, value in state.items()}
        neighbours: NeighbourItems | None = encoder.item_tower.encoded
        if KEYS in values and neighbours is not None:  # there are none while training
            neighbours.keys_VK = torch.empty(vocabulary.n_items + 1, values[KEYS].shape[1])
        try:
            encoder.load_state_dict(values, assign=True)
        except RuntimeError as error:
            raise RunError(f"the saved encoder does not fit its recipe: {error}") from None
        n_priors = 0 if item_priors_VP is None else item_priors_VP.shape[1]
        if n_priors != len(recipe.popularity_days):
            raise RunError(f"there are {n_priors} item priors, the recipe has {len(recipe.popularity_days)}")
        return cls(recipe, vocabulary, encoder.eval(), item_priors_VP, trained_until_us)

    @property
    def item_table_VD(self) -> Tensor:
        """float32 [V + 1, D], D = ``recipe.vectors.table_dim``: the rows that histories are read with."""
        weight: Tensor = self.encoder.embedding_collection.embeddings[ITEM_TABLE].weight.detach()
        return weight

    @cached_property
    def item_vectors_VD(self) -> Tensor:
        """The vectors that score an item by their inner product with an interest, float32 [V + 1, O]; O is
        ``recipe.interest_dim``, or the width of the host's towers.

        Row 0 is the unknown item's and no catalogue item.
        """
        if self.towers is not None:
            return self.towers.item_vectors_VO
        return score_vectors(self.item_table_VD, self.item_priors_VP, self.recipe.vectors.cosine)

    @cached_property
    def digest(self) -> str:
        """Hexadecimal sha256 of everything that decides on a vector: recipe, vocabulary, weights and item priors."""
        digest = hashlib.sha256(json.dumps(self.recipe.as_dict(), sort_keys=True).encode())
        digest.update("\0".join(map(str, self.vocabulary.item_ids.tolist())).encode())
        state: dict[str, Tensor | None] = {**self._state(), "item_priors": self.item_priors_VP}
        if self.towers is not None:
            digest.update(json.dumps(self.towers.query.spec, sort_keys=True).encode())
            state["item_vectors"] = self.towers.item_vectors_VO
        for name, value in sorted(state.items()):
            if value is not None:
                digest.update(name.encode())
                digest.update(value.detach().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def check_log(self, log: Sequences) -> None:
        """Raise SchemaError if the log lacks what the encoder reads of events."""
        if lacking := self.encoder.event_embedder.inputs.lacking(log):
            raise SchemaError(f"the model reads {' and '.join(lacking)}, but the log has none; give a log with it")

    @torch.no_grad()
    def encode(self, histories: Sequences, *, wide: bool = False) -> Tensor:
        """``interests_BKD`` float32 of the latest ``recipe.encoder.max_length`` events of each history; with a host's
        towers ``[B, 1, O]``, its queries.

        Without events it is what the head makes of zeros: zeros, or with popularity columns the taste of the crowd.

        Args:
            wide: compute in float64 and round once. A matrix product in float32 has other last bits in a batch than
                for one user alone; rounded from float64 the bytes are the same, for more time.
        """
        histories = histories.latest(self.recipe.encoder.max_length)
        n_interests = self.recipe.interests_per_user if self.towers is None else 1
        interests_BKD = torch.empty(histories.n_users, n_interests, self.item_vectors_VD.shape[1])
        for users in _calls(histories):
            # one call for all, as for a single user, reads the histories where they are
            chosen = histories if len(users) == histories.n_users else histories.take(users)
            where = slice(None) if chosen is histories else torch.from_numpy(users)
            vectors = direct_interests(self.encoder, chosen, self._wide if wide else None)
            if self.towers is not None:
                vectors = (self._wide_query if wide else self.towers.query)(vectors)
            interests_BKD[where] = vectors.float().view(len(users), n_interests, -1)
        return interests_BKD

    @cached_property
    def _wide(self) -> WideModules:
        return WideModules.of(self.encoder)

    @cached_property
    def _wide_query(self) -> nn.Module:
        return copy.deepcopy(cast(StoredTowers, self.towers).query).double()

    def _state(self) -> dict[str, Tensor]:
        """Everything but the items' vectors: the encoder's, and those of the query tower."""
        query = {} if self.towers is None else self.towers.query.state_dict(prefix="query_tower.")
        return {**without_record(self.encoder.state_dict()), **query}

    def with_items(self, rows_G: np.ndarray) -> InterestModel:
        """Return the same model with these items only, in this order: int64 [G], rows 0..V-1 (vocabulary row - 1)."""
        table_rows = torch.from_numpy(np.concatenate([[0], rows_G + 1]))
        state = {name: value.detach().clone() for name, value in self.encoder.state_dict().items()}
        for name in state.keys() & {ITEM_WEIGHT, KEYS}:
            state[name] = state[name][table_rows]
        known = self.vocabulary
        chosen = replace(known, item_ids=known.item_ids[rows_G], item_counts=known.item_counts[rows_G])
        priors = None if self.item_priors_VP is None else self.item_priors_VP[table_rows]
        model = InterestModel.from_state(self.recipe, chosen, state, priors, self.trained_until_us)
        if self.towers is None:
            return model
        return replace(model, towers=StoredTowers(self.towers.query, self.towers.item_vectors_VO[table_rows]))

    def with_rows(self, item_ids: np.ndarray, rows_ND: Tensor, priors_NP: Tensor | None = None) -> InterestModel:
        """Return the same model with other rows of the item table for these items; unknown ids come after all others,
        in the order given, with no event counted. ``priors_NP``: their popularity columns, if the recipe has any.

        Raises UsageError if a host's candidate tower makes the vectors: rows alone do not say them.
        """
        if self.towers is not None:
            raise UsageError(
                "the model has the candidate tower of a host, so rows say no vectors: publish the host again"
            )
        places = self.vocabulary.item_rows(item_ids) if len(item_ids) else np.empty(0, np.int64)
        new = places == 0
        places[new] = self.vocabulary.n_items + 1 + np.arange(int(new.sum()))
        ids = np.concatenate([self.vocabulary.item_ids, np.asarray(item_ids, self.vocabulary.item_ids.dtype)[new]])
        counts = np.concatenate([self.vocabulary.item_counts, np.zeros(int(new.sum()), np.int64)])
        state = dict(self.encoder.state_dict())
        at = torch.from_numpy(places)
        state[ITEM_WEIGHT] = _with_rows(state[ITEM_WEIGHT], at, rows_ND, len(ids) + 1)
        if KEYS in state:  # an item without events is nobody's neighbour
            state[KEYS] = F.pad(state[KEYS], (0, 0, 0, len(ids) + 1 - len(state[KEYS])))
        priors = self.item_priors_VP
        if priors is not None and priors_NP is not None:
            priors = _with_rows(priors, at, priors_NP, len(ids) + 1)
        vocabulary = replace(self.vocabulary, item_ids=ids, item_counts=counts)
        return InterestModel.from_state(self.recipe, vocabulary, state, priors, self.trained_until_us)

    def save(self, folder: Path) -> None:
        """Write the four files into ``folder``, which exists."""
        state = {name: value.contiguous() for name, value in self._state().items()}
        items = {"item_table": state.pop(ITEM_WEIGHT)}
        if self.item_priors_VP is not None:
            items["item_priors"] = self.item_priors_VP.contiguous()
        if self.towers is not None:
            items["item_vectors"] = self.towers.item_vectors_VO.contiguous()
        query = None if self.towers is None else self.towers.query.spec
        save_parts(folder, self.recipe, self.vocabulary, state, self.trained_until_us, query)
        create(folder / "items.safetensors", {name: (value.shape[0], value.shape[1]) for name, value in items.items()})
        for name, value in items.items():
            write(folder / "items.safetensors", name, value.detach())

    @classmethod
    def load(cls, folder: Path) -> InterestModel:
        """Read what ``save`` wrote. Raises RunError if a file is missing or does not fit the others."""
        for name in ("encoder.safetensors", "items.safetensors", "recipe.json", "vocabulary.parquet"):
            if not (folder / name).is_file():
                raise RunError(f"{folder} has no {name}; is this a finished run or a store version?")
        header = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
        state = load_file(folder / "encoder.safetensors")
        items = load_file(folder / "items.safetensors")
        state[ITEM_WEIGHT] = items["item_table"]
        recipe = Recipe.stored(header["recipe"], folder / "recipe.json")
        vocabulary = Vocabulary.load(folder / "vocabulary.parquet")
        priors, until_us = items.get("item_priors"), header["trained_until_us"]
        towers = StoredTowers.take(header, state, items)
        model = cls.from_state(recipe, vocabulary, state, priors, until_us, own=False)
        return replace(model, towers=towers)

    @classmethod
    def from_run(cls, run: str | Path) -> InterestModel:
        """Load the best model of a finished run. Raises RunError if the run is missing or not finished."""
        folder = Path(run) / "model"
        if not folder.is_dir():
            raise RunError(f"{run} is not a finished run (no model/); train it first, or go on with --resume")
        return cls.load(folder)


def _with_rows(table_VD: Tensor, at_N: Tensor, rows_ND: Tensor, n_rows: int) -> Tensor:
    """Return a copy of ``n_rows`` rows, with those at ``at_N`` replaced."""
    longer_VD = table_VD.new_zeros(n_rows, table_VD.shape[1])
    longer_VD[: len(table_VD)] = table_VD.detach()
    longer_VD[at_N] = rows_ND.to(table_VD.dtype)
    return longer_VD


def save_parts(
    folder: Path,
    recipe: Recipe,
    vocabulary: Vocabulary,
    state: Mapping[str, Tensor],
    trained_until_us: int | None,
    query: list[dict[str, Any]] | None = None,
) -> None:
    """Write the files of a model but ``items.safetensors``; ``state`` is the encoder's without the item table, and that
    of the query tower with the layers ``query``.
    """
    state = without_record(state)
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "encoder.safetensors")
    header: dict[str, Any] = {"recipe": recipe.as_dict(), "trained_until_us": trained_until_us}
    header["bseq_version"] = __version__
    if query is not None:
        header["query_tower"] = query
    (folder / "recipe.json").write_text(json.dumps(header, indent=1), encoding="utf-8")
    vocabulary.save(folder / "vocabulary.parquet")


def _calls(histories: Sequences) -> list[np.ndarray]:
    """Return the places of the users of each call, like lengths together: no padding, and even calls."""
    if histories.n_users == 0:
        return []
    if histories.n_events <= EVENTS_PER_CALL:
        return [np.arange(histories.n_users)]
    order = np.argsort(histories.lengths, kind="stable")
    boundaries = np.flatnonzero(np.diff(np.cumsum(histories.lengths[order]) // EVENTS_PER_CALL)) + 1
    return np.split(order, boundaries)
