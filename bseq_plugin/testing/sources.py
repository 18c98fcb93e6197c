"""Conformance suite of candidate sources.

    from bseq_plugin.testing.sources import CandidateSourceTests

    class TestMine(CandidateSourceTests):
        source = MySource

Shape letters: B users, D width, V items, N candidates.
"""

# ruff: noqa: D102  (the names of the tests say what they check)

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bseq_plugin.events.sequences import Sequences
from bseq_plugin.indexes.exact import ExactIndex
from bseq_plugin.schema.sources import CandidateSource, SourceCandidates, SourceInputs
from bseq_plugin.serving.hits import ExcludedPairs
from bseq_plugin.serving.sources import ask_sources, searcher

N_ITEMS, DIM = 40, 6
HOUR_US = 3_600_000_000
LENGTHS = (5, 0, 12, 1, 30)


def made_up_histories(lengths: tuple[int, ...] = LENGTHS, seed: int = 0, n_items: int = N_ITEMS) -> Sequences:
    """Histories with times; items often come after their neighbours, and some are popular."""
    random = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    steps = random.integers(1, 4, offsets[-1]).cumsum() + random.integers(0, n_items)
    items = np.where(random.random(offsets[-1]) < 0.3, random.integers(1, 6, offsets[-1]), steps % n_items + 1)
    times = np.concatenate([np.sort(random.integers(0, 2_000, n)) for n in lengths]) * HOUR_US + 1_600_000_000_000_000
    return Sequences(np.arange(len(lengths)) * 3, offsets, items.astype(np.int64), times.astype(np.int64))


def inputs_of(histories: Sequences, n_items: int = N_ITEMS, seed: int = 0) -> SourceInputs:
    """Random vectors; a user's interest is the mean of their items."""
    vectors_VD = torch.randn(n_items + 1, DIM, generator=torch.Generator().manual_seed(seed))
    interests_BKD = torch.zeros(histories.n_users, 1, DIM)
    for user in range(histories.n_users):
        items = histories.items[histories.offsets[user] : histories.offsets[user + 1]]
        if len(items):
            interests_BKD[user, 0] = vectors_VD[torch.from_numpy(items)].mean(0)
    return SourceInputs(histories, interests_BKD, vectors_VD, searcher(ExactIndex.build(vectors_VD[1:]), n_items))


def by_user(found: SourceCandidates, n_users: int) -> list[dict[int, float]]:
    """{vocabulary row: score} of each user."""
    lists: list[dict[int, float]] = [{} for _ in range(n_users)]
    for user, row, score in zip(found.users_N.tolist(), found.rows_N.tolist(), found.scores_N.tolist(), strict=True):
        lists[user][row] = score
    return lists


class CandidateSourceTests:
    """Set ``source``; ``options`` if it needs some."""

    source: ClassVar[type[CandidateSource]]
    options: ClassVar[Mapping[str, Any]] = {}

    def fitted(self, seed: int = 0) -> CandidateSource:
        """The source under test, fitted on made-up histories."""
        options = self.source.checked_options(self.options)
        return self.source(self.source.fit(made_up_histories(seed=seed), N_ITEMS, options), options)

    def checked(self, source: CandidateSource, inputs: SourceInputs, k: int) -> SourceCandidates:
        """What it finds, after the same checks that serving makes."""
        nothing = np.empty(0, np.int64)
        n_users = inputs.histories.n_users
        ask_sources({source.name: source}, inputs, k, ExcludedPairs.of(nothing, nothing, n_users, N_ITEMS), None)
        return source.find(inputs, k)

    def test_has_a_name_and_says_what_it_is(self) -> None:
        assert isinstance(self.source.name, str)
        assert self.source.name
        assert isinstance(self.source.description, str)
        assert self.source.description

    @pytest.mark.parametrize("k", [1, 3, 10, N_ITEMS, 5 * N_ITEMS])
    def test_gives_what_the_contract_says(self, k: int) -> None:
        found = self.checked(self.fitted(), inputs_of(made_up_histories(seed=1)), k)
        assert len(found.users_N) == len(found.rows_N) == len(found.scores_N)
        if len(found.users_N):
            assert int(torch.bincount(found.users_N).max()) <= k

    def test_fewer_candidates_are_the_best_of_more(self) -> None:
        source, inputs = self.fitted(), inputs_of(made_up_histories(seed=1))
        few, many = (by_user(self.checked(source, inputs, k), len(LENGTHS)) for k in (3, N_ITEMS))
        for short, long in zip(few, many, strict=True):
            assert len(short) == min(3, len(long))
            assert sorted(short.values()) == pytest.approx(sorted(sorted(long.values())[-3:]), abs=1e-6)

    def test_a_user_gets_the_same_in_any_batch(self) -> None:
        source, histories = self.fitted(), made_up_histories(seed=1)
        together = by_user(self.checked(source, inputs_of(histories), 7), histories.n_users)
        for user in range(histories.n_users):
            alone = self.checked(source, inputs_of(histories.take(np.array([user]))), 7)
            [mine] = by_user(alone, 1)
            assert mine.keys() == together[user].keys()
            assert mine == pytest.approx(together[user], abs=1e-6)

    @pytest.mark.parametrize("lengths", [(), (0,), (0, 0), (1,)])
    def test_hardly_any_history(self, lengths: tuple[int, ...]) -> None:
        histories = made_up_histories(lengths) if lengths else made_up_histories((1,)).take(np.empty(0, np.int64))
        self.checked(self.fitted(), inputs_of(histories), 5)

    def test_fitted_on_nothing(self) -> None:
        nothing = made_up_histories((0, 0))
        source = self.source(self.source.fit(nothing, N_ITEMS))
        self.checked(source, inputs_of(made_up_histories(seed=1)), 5)

    def test_its_state_survives_a_file(self, tmp_path: Path) -> None:
        source, inputs = self.fitted(), inputs_of(made_up_histories(seed=1))
        save_file({key: value.contiguous() for key, value in source.state.items()}, tmp_path / "state.safetensors")
        again = self.source(load_file(tmp_path / "state.safetensors"), source.options)
        wanted, got = (by_user(one.find(inputs, 9), len(LENGTHS)) for one in (source, again))
        assert got == wanted

    def test_the_same_histories_give_the_same_state(self) -> None:
        first, second = self.fitted().state, self.fitted().state
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)

    def test_inputs_are_left_as_they_were(self) -> None:
        histories = made_up_histories(seed=1)
        inputs = inputs_of(histories)
        copies = histories.items.copy(), inputs.interests_BKD.clone(), inputs.item_vectors_VD.clone()
        self.fitted().find(inputs, 5)
        assert (histories.items == copies[0]).all()
        assert torch.equal(inputs.interests_BKD, copies[1])
        assert torch.equal(inputs.item_vectors_VD, copies[2])
