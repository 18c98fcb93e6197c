"""Point-in-time ranking features for candidates.

Shape letters: N candidate rows, R requests (one user at one instant), K interests, V catalogue items, D width.

    candidates -> requests (user, at) -> histories strictly before at -> interests -> blocks of rows -> columns
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bseq_plugin.data.events import Events
from bseq_plugin.data.sequences import Sequences
from bseq_plugin.data.vocabulary import Vocabulary
from bseq_plugin.errors import BseqError, PluginError, UsageError
from bseq_plugin.plugins import PluginManager
from bseq_plugin.ranking.requests import CandidateRows, Histories, Requests, read_log
from bseq_plugin.ranking.spec import FeatureSpec
from bseq_plugin.ranking.table import FeatureTable
from bseq_plugin.schema.parts import RankingFeature
from bseq_plugin.schema.ranking import FeatureInputs

BLOCK_NUMBERS = 4_000_000  # float64 numbers a block needs at once (about; padding can triple it): 32 MB


class FeatureModel(Protocol):
    """What the features need of a trained model; ``InterestModel`` has it."""

    @property
    def recipe(self) -> Any:
        """Its ``max_length`` is the number of events that an interest is made of."""

    @property
    def vocabulary(self) -> Vocabulary:
        """Item ids <-> rows of ``item_vectors_VD``."""

    @property
    def item_vectors_VD(self) -> Tensor:
        """float32 [V + 1, D], row 0 = unknown item."""

    @property
    def trained_until_us(self) -> int | None:
        """Microseconds UTC of the newest event the model was trained on; None if the log had no times."""

    def encode(self, histories: Sequences, /) -> Tensor:
        """float32 [B, K, D], in calls that bound its own memory; an interest that a user lacks is NaN or zero."""


def ranking_features(
    candidates: pd.DataFrame,
    events: Events | Sequences,
    at: object | None = None,
    features: FeatureSpec | None = None,
    *,
    model: FeatureModel,
    allow_future_model: bool = False,
    manager: PluginManager | None = None,
    block_numbers: int = BLOCK_NUMBERS,
) -> FeatureTable:
    """Features of each candidate row as of ``at``; offline and online are this one function.

    Only events strictly before a row's ``at`` are read, whatever else the log holds: an event exactly at ``at`` is
    excluded, and adding, changing or deleting events at or after ``at`` changes no byte. Equal times keep the order of
    the log. Interests are encoded from the latest ``model.recipe.max_length`` of these events, the other features
    read the latest ``features.history_length``. An unknown item, an unknown user, a user without an earlier event of
    a known item: NaN where that is needed. The log has no times of arrival, so events that came late are read like
    others.

    Args:
        candidates: user_id, item_id [, rank, score, interest: as the retriever gives them] [, at: times with a time
            zone, one a row]. Equal rows are kept.
        events: a log, or sequences with times and with rows of ``model.vocabulary``.
        at: the instant of all rows, with a time zone; None if the candidates have a column ``at``.
        features: which features; ``FeatureSpec.default()`` if not given.
        model: where interests and item vectors come from.
        allow_future_model: permit a model trained on events at or after ``at`` (its features leak what came after).
        manager: where features are looked up; the installed plugins if not given.
        block_numbers: memory bound, numbers held at once; it has no influence on the result.

    Raises:
        UsageError: no candidates, unknown feature, a model of the future, no ``at`` or two of them.
        SchemaError: a column, a type of id or a time is not as documented.
        PluginError: a feature or the model returned something unusable.
    """
    spec = FeatureSpec.default() if features is None else features
    classes = spec.classes(manager)
    rows = CandidateRows.read(candidates, at)
    _refuse_future_model(model, int(rows.at_N.min()), allow_future_model)
    requests = Requests.of(rows)
    histories = Histories.cut(read_log(events, model.vocabulary, rows), requests, spec.ttl_days)
    base = _inputs(model, rows, requests, histories, spec.history_length)
    columns: dict[str, np.ndarray] = {}
    for places, inputs in _blocks(base, block_numbers):
        for cls in classes:
            values = _compute(cls, inputs)
            column = columns.setdefault(cls.name, np.empty((len(rows), *values.shape[1:]), np.float32))
            if column.shape[1:] != values.shape[1:]:
                raise PluginError(f"ranking feature {cls.name!r} gave {values.shape[1:]} and {column.shape[1:]} a row")
            column[places] = values
    return FeatureTable(rows.user_ids, rows.item_ids, rows.at_N, columns, {c.name: c.description for c in classes})


def _refuse_future_model(model: FeatureModel, earliest_us: int, allowed: bool) -> None:
    if allowed:
        return
    until = model.trained_until_us
    if until is None:
        raise UsageError(
            "the model does not tell until when its training events reach, so it may know what came after `at`; "
            "train on a log with times, or pass allow_future_model=True"
        )
    if until >= earliest_us:
        trained, asked = (pd.Timestamp(us, unit="us", tz="UTC").isoformat() for us in (until, earliest_us))
        raise UsageError(
            f"the model was trained on events until {trained}, not before at = {asked}: its features would "
            "know the future. Use a model trained on earlier events, or pass allow_future_model=True"
        )


def _inputs(
    model: FeatureModel, rows: CandidateRows, requests: Requests, histories: Histories, history_length: int
) -> FeatureInputs:
    """Inputs of all candidate rows at once; nothing of size N x D is made here."""
    item_vectors_VD = model.item_vectors_VD.detach().to("cpu", torch.float32)
    if item_vectors_VD.ndim != 2 or item_vectors_VD.shape[0] != model.vocabulary.n_items + 1:
        raise PluginError(
            f"the model's item vectors have shape {tuple(item_vectors_VD.shape)}; its vocabulary of "
            f"{model.vocabulary.n_items} items needs one row each and row 0 for unknown ones"
        )
    history = histories.latest(history_length)
    types_T = history.event_types
    retrieval = {f"retrieval_{name}_N": torch.tensor(values) for name, values in rows.retrieval.items()}
    return FeatureInputs(
        request_N=torch.from_numpy(requests.request_N),
        candidate_N=torch.from_numpy(model.vocabulary.item_rows(rows.item_ids)),
        at_R=torch.from_numpy(requests.at_R),
        offsets_R1=torch.from_numpy(history.offsets),
        items_T=torch.from_numpy(history.items),
        timestamps_T=torch.from_numpy(np.asarray(history.timestamps)),
        event_types_T=None if types_T is None else torch.from_numpy(types_T),
        interests_RKD=_encode(model, histories.latest(model.recipe.max_length), item_vectors_VD.shape[1]),
        item_vectors_VD=item_vectors_VD,
        **retrieval,
    )


def _encode(model: FeatureModel, history: Sequences, dim: int) -> Tensor:
    """float32 [R, K, D]; NaN for a request without an event of a known item, whatever the encoder makes of nothing."""
    with torch.no_grad():
        interests_RKD = model.encode(history).to("cpu", torch.float32)
    shape = tuple(interests_RKD.shape)
    if len(shape) != 3 or shape != (history.n_users, max(shape[1], 1), dim):
        raise PluginError(f"the model's encode gave shape {shape}, not [{history.n_users}, K, {dim}]")
    known_R = np.diff(np.concatenate([[0], np.cumsum(history.items > 0)])[history.offsets]) > 0
    return torch.where(torch.from_numpy(known_R)[:, None, None], interests_RKD, torch.nan)


def _blocks(base: FeatureInputs, block_numbers: int) -> Iterator[tuple[np.ndarray, FeatureInputs]]:
    """Rows by request, cut where the vectors and cosines of a block would need more than ``block_numbers`` numbers.

    Yields the places of the block's rows in the input and their inputs, which hold only the requests they belong to.
    """
    if block_numbers < 1:
        raise UsageError(f"block_numbers = {block_numbers}; it has to be 1 or more")
    order_N = torch.argsort(base.request_N, stable=True)
    request_N = base.request_N[order_N]
    interests, dim = base.interests_RKD.shape[1:]
    new_N = torch.diff(request_N, prepend=torch.tensor([-1])) != 0
    length_N = base.lengths_R[request_N]
    cost_N = length_N + dim * (interests + 2) + new_N * dim * (length_N + interests)
    block_N = (cost_N.cumsum(0) - cost_N) // block_numbers
    for places in torch.split(order_N, torch.unique_consecutive(block_N, return_counts=True)[1].tolist()):
        yield places.numpy(), _block(base, places)


def _block(base: FeatureInputs, places: Tensor) -> FeatureInputs:
    """The inputs of rows that stand by request; every request has rows, so those of a block are consecutive."""
    request_N = base.request_N[places]
    first, stop = int(request_N[0]), int(request_N[-1]) + 1
    offsets_R1 = base.offsets_R1[first : stop + 1]
    events = slice(int(offsets_R1[0]), int(offsets_R1[-1]))
    rank, score, interest = (
        None if column is None else column[places]
        for column in (base.retrieval_rank_N, base.retrieval_score_N, base.retrieval_interest_N)
    )
    return FeatureInputs(
        request_N=request_N - first,
        candidate_N=base.candidate_N[places],
        at_R=base.at_R[first:stop],
        offsets_R1=offsets_R1 - offsets_R1[0],
        items_T=base.items_T[events],
        timestamps_T=base.timestamps_T[events],
        event_types_T=None if base.event_types_T is None else base.event_types_T[events],
        interests_RKD=base.interests_RKD[first:stop],
        item_vectors_VD=base.item_vectors_VD,
        retrieval_rank_N=rank,
        retrieval_score_N=score,
        retrieval_interest_N=interest,
    )


def _compute(cls: type[RankingFeature], inputs: FeatureInputs) -> np.ndarray:
    """float32 [N] or [N, width]; what a plugin returns is checked before it goes anywhere."""
    try:
        with torch.no_grad():
            values = cls().compute(inputs)
    except BseqError:
        raise
    except Exception as error:  # a third party's feature can fail in any way; say whose it is
        raise PluginError(f"ranking feature {cls.name!r} failed: {type(error).__name__}: {error}") from error
    if not isinstance(values, Tensor) or values.dtype != torch.float32:
        kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise PluginError(f"ranking feature {cls.name!r} gave {kind}; it has to be a float32 tensor")
    n_rows = inputs.candidate_N.shape[0]
    if values.ndim not in (1, 2) or values.shape[0] != n_rows or (values.ndim == 2 and values.shape[1] == 0):
        raise PluginError(
            f"ranking feature {cls.name!r} gave shape {tuple(values.shape)}, not [{n_rows}] or [{n_rows}, width]"
        )
    if torch.isfinite(values).all():
        return values.numpy()
    if torch.isinf(values).any():
        raise PluginError(f"ranking feature {cls.name!r} gave an infinite value; undefined values are NaN")
    # one NaN for all: its sign bit depends on how it came about, and the same rows are to have the same bytes
    return torch.where(torch.isnan(values), torch.nan, values).numpy()
