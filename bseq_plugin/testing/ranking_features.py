"""Conformance suite of ranking features.

    from bseq_plugin.testing.ranking_features import RankingFeatureTests

    class TestMine(RankingFeatureTests):
        feature = MyFeature

Shape letters: R requests, N candidate rows, T history events, K interests, V catalogue items, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from bseq_plugin.events.events import Events
from bseq_plugin.events.sequences import Sequences
from bseq_plugin.events.vocabulary import Vocabulary
from bseq_plugin.hookspecs import hookimpl
from bseq_plugin.plugins import PluginManager
from bseq_plugin.ranking import FeatureSpec, FeatureTable, ranking_features
from bseq_plugin.recipe.recipe import Recipe
from bseq_plugin.schema.ranking import FeatureInputs
from bseq_plugin.schema.ranking_features import CATEGORY, RankingFeature

NOW = pd.Timestamp("2024-05-01T12:00:00+00:00")
NOW_US = NOW.value // 1_000  # `value` is in nanoseconds whatever the unit of the Timestamp
DIM = 6


@dataclass(frozen=True)
class MeanModel:
    """A model without training: interest k of a user is the mean vector of every K-th known event, from the k-th on.

    A user with fewer than K known events lacks the later interests (NaN); one without any gets zeros.
    """

    vocabulary: Vocabulary
    item_vectors_VD: Tensor
    n_interests: int = 1
    trained_until_us: int | None = 0
    digest: str = "0" * 64
    recipe: Recipe = field(default_factory=Recipe)

    def encode(self, histories: Sequences, *, wide: bool = False) -> Tensor:
        """float32 [B, K, D]."""
        known = histories.known()
        interests_BKD = torch.zeros(known.n_users, self.n_interests, self.item_vectors_VD.shape[1])
        for user in range(known.n_users):
            rows = torch.from_numpy(known.items[known.offsets[user] : known.offsets[user + 1]])
            for k in range(self.n_interests if len(rows) else 0):
                interests_BKD[user, k] = self.item_vectors_VD[rows[k :: self.n_interests]].mean(0)
        return interests_BKD


def catalogue(n_items: int = 8, seed: int = 0) -> tuple[Vocabulary, Tensor]:
    """Items 100, 101, ... and their vectors of various lengths, float32 [V + 1, D]."""
    generator = torch.Generator().manual_seed(seed)
    vectors_VD = (
        torch.randn(n_items + 1, DIM, generator=generator) * torch.rand(n_items + 1, 1, generator=generator) * 5
    )
    return Vocabulary(np.arange(100, 100 + n_items), np.ones(n_items, np.int64), ("buy", "click")), vectors_VD


def mean_model(n_interests: int = 1, n_items: int = 8) -> MeanModel:
    """A ``MeanModel`` over ``catalogue``."""
    return MeanModel(*catalogue(n_items), n_interests)


def log(rows: Sequence[tuple[int, int, float]]) -> Events:
    """Events of (user, item, seconds after ``NOW``)."""
    users, items, seconds = (np.array(column) for column in zip(*rows, strict=True))
    micros = NOW_US + (seconds * 1e6).astype(np.int64)
    types = np.where(items % 2 == 0, "click", "buy")
    return Events.from_frame(
        pd.DataFrame({"user_id": users, "item_id": items, "timestamp": micros, "event_type": types}),
        timestamp_unit="us",
    )


def manager_with(*features: type[RankingFeature]) -> PluginManager:
    """A plugin manager that knows these features only."""

    class Plugin:
        @hookimpl
        def bseq_ranking_features(self) -> list[type[RankingFeature]]:
            return list(features)

    manager = PluginManager()
    manager.register(Plugin(), "features")
    return manager


def feature_inputs(n_interests: int = 2, lengths: Sequence[int] = (3, 0, 1, 9), seed: int = 0) -> FeatureInputs:
    """A block with a request for each history length and five candidates each, unknown items among both."""
    generator = torch.Generator().manual_seed(seed)
    n_requests, n_events, n_rows = len(lengths), sum(lengths), 5 * len(lengths)
    _, vectors_VD = catalogue()
    offsets_R1 = torch.tensor([0, *np.cumsum(lengths)])
    at_R = torch.full((n_requests,), NOW_US)
    interests_RKD = torch.randn(n_requests, n_interests, DIM, generator=generator)
    interests_RKD[offsets_R1.diff() == 0] = torch.nan
    return FeatureInputs(
        request_N=torch.arange(n_requests).repeat_interleave(5),
        candidate_N=torch.randint(0, 9, (n_rows,), generator=generator).index_fill(0, torch.tensor([2]), 0),
        at_R=at_R,
        offsets_R1=offsets_R1,
        items_T=torch.randint(0, 9, (n_events,), generator=generator),
        timestamps_T=at_R[0] - torch.arange(n_events, 0, -1) * 60_000_000,
        event_types_T=torch.randint(0, 3, (n_events,), generator=generator),
        interests_RKD=interests_RKD,
        item_vectors_VD=vectors_VD,
        retrieval_rank_N=torch.arange(n_rows).remainder(5).float(),
        retrieval_score_N=torch.randn(n_rows, generator=generator),
        retrieval_interest_N=torch.zeros(n_rows),
        retrieval_n_interests_N=torch.ones(n_rows),
        event_types=("buy", "click"),
        category_V=torch.arange(9) % 3,
        interests_at_R=torch.where(offsets_R1.diff() > 0, at_R - 60_000_000, -1),
        model_version=7,
    )


def take_rows(inputs: FeatureInputs, rows: Tensor) -> FeatureInputs:
    """The same requests with other candidate rows: those at ``rows``, in this order."""
    of_rows = {f.name: getattr(inputs, f.name) for f in fields(inputs) if f.name.endswith("_N")}
    changed = {name: values[rows] for name, values in of_rows.items() if values is not None}
    return replace(inputs, **changed)


class RankingFeatureTests:
    """Set ``feature``; set ``exact = True`` if a row has the same bytes in whatever block it is computed."""

    feature: ClassVar[type[RankingFeature]]
    exact: ClassVar[bool] = False

    def compute(self, inputs: FeatureInputs) -> Tensor:
        """The feature under test, on a copy of ``inputs`` that has nothing cached."""
        return self.feature().compute(replace(inputs))

    def same(self, got: Tensor, wanted: Tensor) -> None:
        """Equal, NaN in the same places."""
        relative, absolute = (0.0, 0.0) if self.exact else (1e-5, 1e-6)
        torch.testing.assert_close(got, wanted, equal_nan=True, rtol=relative, atol=absolute)

    def table(self, rows: Sequence[tuple[int, int, float]]) -> FeatureTable:
        """The feature through the engine, for users 1 (history), 2 and 9 (none) and items known and unknown."""
        candidates = pd.DataFrame({"user_id": [1, 2, 1, 9], "item_id": [101, 102, 999, 103]})
        spec = FeatureSpec(names=(self.feature.name,))
        return ranking_features(
            candidates, log(rows), NOW, spec, model=mean_model(), manager=manager_with(self.feature)
        )

    def test_has_a_name_and_a_description(self) -> None:
        """Both become part of tables that others read."""
        assert self.feature.name.isidentifier()
        assert len(self.feature.description) > 10
        assert "\n" not in self.feature.description

    @pytest.mark.parametrize("n_interests", [1, 3])
    def test_is_one_float32_value_or_vector_a_row(self, n_interests: int) -> None:
        """The width depends on the model only, never on the rows; several columns have one value each."""
        shapes = set()
        names = self.feature().columns(("buy", "click"))
        for lengths in ((3, 0, 1, 9), (0,), (2, 2)):
            inputs = feature_inputs(n_interests, lengths)
            values = self.compute(inputs)
            assert values.dtype == torch.float32 or (self.feature.unit == CATEGORY and values.dtype == torch.int64)
            assert values.shape[0] == inputs.candidate_N.shape[0]
            assert not torch.isinf(values).any()
            shapes.add(tuple(values.shape[1:]))
        assert len(shapes) == 1
        assert len(names) == 1 or shapes == {(len(names),)}
        assert len(shapes.pop()) <= 1

    def test_bare_inputs_do(self) -> None:
        """Without event types, retrieval columns, known items: values or NaN, but no error."""
        inputs = feature_inputs()
        bare = replace(
            inputs, event_types_T=None, retrieval_rank_N=None, retrieval_score_N=None, retrieval_interest_N=None,
            retrieval_n_interests_N=None, event_types=(), category_V=None, interests_at_R=None, model_version=None,
        )  # fmt: skip
        self.compute(bare)
        unknown = replace(
            inputs, items_T=torch.zeros_like(inputs.items_T), candidate_N=torch.zeros_like(inputs.candidate_N)
        )
        assert not torch.isinf(self.compute(unknown)).any()

    def test_permuting_the_rows_permutes_the_values(self) -> None:
        """A row's value is its own."""
        inputs = feature_inputs(3)
        order = torch.randperm(inputs.candidate_N.shape[0], generator=torch.Generator().manual_seed(1))
        self.same(self.compute(take_rows(inputs, order)), self.compute(inputs)[order])

    def test_a_row_has_the_same_value_alone(self) -> None:
        """Nothing is normalised over the rows that happen to be in the block."""
        inputs = feature_inputs(3)
        values = self.compute(inputs)
        for row in range(values.shape[0]):
            self.same(self.compute(take_rows(inputs, torch.tensor([row]))), values[row : row + 1])

    def test_other_users_do_not_matter(self) -> None:
        """Changing one request's history and interests leaves the others' values."""
        inputs = feature_inputs(2)
        start, stop = inputs.offsets_R1[3:5].tolist()
        items_T, interests_RKD = inputs.items_T.clone(), inputs.interests_RKD.clone()
        items_T[start:stop] = items_T[start:stop].flip(0).remainder(8) + 1
        interests_RKD[3] = -2 * interests_RKD[3]
        others = inputs.request_N != 3
        changed = self.compute(replace(inputs, items_T=items_T, interests_RKD=interests_RKD))
        self.same(changed[others], self.compute(inputs)[others])

    def test_leaves_its_inputs_alone(self) -> None:
        """Features of one block share them."""
        inputs, before = feature_inputs(), feature_inputs()
        self.feature().compute(inputs)
        for name in (column.name for column in fields(inputs)):
            now, then = getattr(inputs, name), getattr(before, name)
            if isinstance(then, Tensor):
                torch.testing.assert_close(now, then, rtol=0, atol=0, equal_nan=True)

    def test_the_future_does_not_matter(self) -> None:
        """Events at or after ``at`` change no byte."""
        past = [(1, 100, -900.0), (1, 103, -60.0), (3, 104, -5.0)]
        future = [(1, 105, 0.0), (2, 102, 0.0), (1, 101, 1.0), (9, 103, 3600.0)]
        before, after = self.table(past).columns, self.table(past + future).columns
        assert {name: values.tobytes() for name, values in before.items()} == {
            name: values.tobytes() for name, values in after.items()
        }
