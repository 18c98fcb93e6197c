"""Point-in-time ranking features for candidates.

Shape letters: N candidate rows, R requests (one user at one instant), K interests, V catalogue items, D width.

    candidates -> requests (user, at) -> histories strictly before at -> interests -> blocks of rows -> columns
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bseq_plugin.data.items import ItemAttributes
from bseq_plugin.errors import PluginError, UsageError
from bseq_plugin.events.events import Events
from bseq_plugin.events.sequences import Sequences
from bseq_plugin.events.vocabulary import Vocabulary
from bseq_plugin.plugins import PluginManager
from bseq_plugin.ranking.blocks import BLOCK_NUMBERS, blocks, checked_columns
from bseq_plugin.ranking.interests import FeatureModel, StoredInterests, encode, refuse_future_model
from bseq_plugin.ranking.requests import CandidateRows, Histories, Requests, read_log, relevant_events
from bseq_plugin.ranking.spec import FeatureSpec
from bseq_plugin.ranking.table import FeatureTable
from bseq_plugin.schema.grid import unit_table
from bseq_plugin.schema.ranking import FeatureInputs

VERSION_DIGITS = 6  # hexadecimal digits of a model's digest that float32 holds exactly


class FeatureEngine:
    """Ranking features over one log and one model: offline for tables of candidates, online for a request at a time.

    What does not depend on the candidates is prepared once. Safe to use from many threads. Arguments as in
    ``ranking_features``.
    """

    def __init__(
        self,
        events: Events | Sequences,
        features: FeatureSpec | None = None,
        *,
        model: FeatureModel,
        items: pd.DataFrame | None = None,
        interests: StoredInterests | None = None,
        allow_future_model: bool = False,
        manager: PluginManager | None = None,
        block_numbers: int = BLOCK_NUMBERS,
    ) -> None:
        if block_numbers < 1:
            raise UsageError(f"block_numbers = {block_numbers}; it has to be 1 or more")
        self.spec = FeatureSpec.default() if features is None else features
        self.parts = self.spec.parts(manager)
        self.model = model
        self.log = read_log(events, model.vocabulary)
        self.interests = interests
        if interests is not None:
            interests.check(model.digest)
        self._allow_future_model = allow_future_model
        self._block_numbers = block_numbers
        self._n_priors = len(model.recipe.popularity_days)
        self._model_version = int(model.digest[:VERSION_DIGITS], 16)
        self._category_V = _categories(self.spec, items, model.vocabulary)

    @cached_property
    def _item_vectors_VD(self) -> Tensor:
        vectors_VD = self.model.item_vectors_VD.detach().to("cpu", torch.float32)
        if vectors_VD.ndim != 2 or vectors_VD.shape[0] != self.model.vocabulary.n_items + 1:
            raise PluginError(
                f"the model's item vectors have shape {tuple(vectors_VD.shape)}; its vocabulary of "
                f"{self.model.vocabulary.n_items} items needs one row each and row 0 for unknown ones"
            )
        # popularity columns say how popular an item is, not what it is; retrieval's score has them
        return vectors_VD[:, : vectors_VD.shape[1] - self._n_priors]

    @cached_property
    def _item_units_VD(self) -> Tensor:
        return unit_table(self._item_vectors_VD)

    def features(
        self, candidates: pd.DataFrame, at: object | None = None, history: Events | Sequences | None = None
    ) -> FeatureTable:
        """Features of each candidate row as of ``at``; see ``ranking_features``.

        Args:
            history: events to read instead of the engine's log: what a serving process knows of these users now.
        """
        rows = CandidateRows.read(candidates, at)
        refuse_future_model(self.model, int(rows.at_N.min()), self._allow_future_model)
        log = self.log if history is None else read_log(history, self.model.vocabulary)
        requests = Requests.of(rows)
        base = self._inputs(rows, requests, Histories.cut(log, requests, self.spec.ttl_days))
        columns = self._columns(base, len(rows))
        event_types = self.model.vocabulary.event_types
        units = {name: part.unit for part in self.parts for name in part.columns(event_types)}
        transform = self.spec.transform
        ids = rows.user_ids, rows.item_ids
        return FeatureTable(*ids, rows.at_N, columns, self.descriptions, rows.request_ids, units, transform)

    def _columns(self, base: FeatureInputs, n_rows: int) -> dict[str, np.ndarray]:
        """Compute the columns block by block."""
        columns: dict[str, np.ndarray] = {}
        for places, inputs in blocks(base, self._block_numbers):
            for part in self.parts:
                for name, values in checked_columns(part, inputs):
                    column = columns.get(name)
                    if column is None:
                        column = columns[name] = np.empty((n_rows, *values.shape[1:]), values.dtype)
                    if (column.dtype, column.shape[1:]) != (values.dtype, values.shape[1:]):
                        raise PluginError(
                            f"ranking feature {part.name!r} gave {values.dtype} {values.shape[1:]} and {column.dtype} "
                            f"{column.shape[1:]} a row"
                        )
                    column[places] = values
        return columns

    @cached_property
    def descriptions(self) -> dict[str, str]:
        """Column -> definition, unit and null rule."""
        event_types = self.model.vocabulary.event_types
        return {name: part.summary() for part in self.parts for name in part.columns(event_types)}

    def _inputs(self, rows: CandidateRows, requests: Requests, histories: Histories) -> FeatureInputs:
        """Inputs of all candidate rows at once; nothing of size N x D is made here."""
        history = histories.latest(self.spec.history_length)
        interests_RKD, interests_at_R = self._interests(requests, histories)
        retrieval = {f"retrieval_{name}_N": torch.tensor(values) for name, values in rows.retrieval.items()}
        return FeatureInputs(
            request_N=torch.from_numpy(requests.request_N),
            candidate_N=torch.from_numpy(self.model.vocabulary.item_rows(rows.item_ids)),
            at_R=torch.from_numpy(requests.at_R),
            offsets_R1=_tensor(history.offsets),
            items_T=_tensor(history.items),
            timestamps_T=_tensor(np.asarray(history.timestamps)),
            event_types_T=None if history.event_types is None else _tensor(history.event_types),
            session_ids_T=None if history.session_ids is None else _tensor(history.session_ids),
            event_types=self.model.vocabulary.event_types,
            category_V=self._category_V,
            interests_RKD=interests_RKD,
            interests_at_R=interests_at_R,
            item_vectors_VD=self._item_vectors_VD,
            item_units_VD=self._item_units_VD,
            model_version=self._model_version,
            log_times=_tensor(np.asarray(histories.log.timestamps)),
            log_starts_R=torch.from_numpy(histories.starts_R),
            log_ends_R=torch.from_numpy(histories.ends_R),
            **retrieval,
        )

    def _interests(self, requests: Requests, histories: Histories) -> tuple[Tensor, Tensor]:
        """Interests as of each request, float32 [R, K, D], and the newest event that they know, int64 [R]."""
        if self.interests is not None:
            stored_RKD, known_R = self.interests.as_of(requests.user_ids, requests.at_R, self.spec.ttl_days)
            return stored_RKD[..., : self._item_vectors_VD.shape[1]], known_R
        read = histories.latest(self.model.recipe.encoder.max_length)
        dim = self._item_vectors_VD.shape[1]
        interests_RKD, newest_R = encode(self.model, read, dim + self._n_priors)
        return interests_RKD[..., :dim], newest_R


def ranking_features(
    candidates: pd.DataFrame,
    events: Events | Sequences,
    at: object | None = None,
    features: FeatureSpec | None = None,
    *,
    model: FeatureModel,
    items: pd.DataFrame | None = None,
    interests: StoredInterests | None = None,
    allow_future_model: bool = False,
    manager: PluginManager | None = None,
    block_numbers: int = BLOCK_NUMBERS,
) -> FeatureTable:
    """Features of each candidate row as of ``at``; offline and online are this one function.

    Only events strictly before a row's ``at`` are read, whatever else the log holds: an event exactly at ``at`` is
    excluded, and adding, changing or deleting events at or after ``at`` changes no byte. Equal times keep the order of
    the log. Interests are encoded from the latest ``encoder.max_length`` of these events, the other features read the
    latest ``features.history_length``, counts of events all of them. An unknown item, an unknown user, a user without
    an earlier event of a known item: NaN where that is needed. An event whose ``created_timestamp`` lies after ``at``
    was not known then and is not read.

    For one request after another build a ``FeatureEngine`` once and call its ``features``.

    Args:
        candidates: user_id, item_id [, rank, score, interest, n_interests: as the retriever gives them] [, request_id]
            [, at: times with a time zone, one a row]. Equal rows are kept.
        events: a log, or sequences with times and with rows of ``model.vocabulary``.
        at: the instant of all rows, with a time zone; None if the candidates have a column ``at``.
        features: which features; ``FeatureSpec.default()`` if not given.
        model: where interests and item vectors come from.
        items: item_id and the column named in ``features.category``.
        interests: computed before, instead of encoding them now; of each user the newest that knows only events before
            ``at`` is taken.
        allow_future_model: permit a model trained on events at or after ``at`` (its features leak what came after).
        manager: where features are looked up; the installed plugins if not given.
        block_numbers: memory bound, numbers held at once; it has no influence on the result.

    Raises:
        UsageError: no candidates, unknown feature, a model of the future, no ``at`` or two of them, interests of
            another model.
        SchemaError: a column, a type of id or a time is not as documented.
        PluginError: a feature or the model returned something unusable.
    """
    if isinstance(events, Events):
        events = relevant_events(events, CandidateRows.read(candidates, at))
    engine = FeatureEngine(
        events, features, model=model, items=items, interests=interests, allow_future_model=allow_future_model,
        manager=manager, block_numbers=block_numbers,
    )  # fmt: skip
    return engine.features(candidates, at)


def _categories(spec: FeatureSpec, items: pd.DataFrame | None, vocabulary: Vocabulary) -> Tensor | None:
    """int64 [V + 1], 0 = missing; None if no category is named."""
    if spec.category is None:
        return None
    if items is None:
        raise UsageError(f"the specification has category = {spec.category!r}; pass items=, a table with that column")
    return torch.from_numpy(ItemAttributes.from_frame(items, [spec.category], vocabulary).single(spec.category))


def _tensor(column: np.ndarray) -> Tensor:
    # columns read from Parquet may be read-only, which torch warns about
    return torch.from_numpy(column if column.flags.writeable else column.copy())
