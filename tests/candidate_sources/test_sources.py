"""The built-in candidate sources: the suite, and what each means, against loops."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import pytest
import torch
from instants import DAY_US

from bseq_plugin import Sequences
from bseq_plugin.candidate_sources.latest_items import ItemNeighbourSource, TransitionSource
from bseq_plugin.candidate_sources.popularity import PopularitySource
from bseq_plugin.data import sparse
from bseq_plugin.testing.sources import N_ITEMS, CandidateSourceTests, by_user, inputs_of, made_up_histories


class TestTransitions(CandidateSourceTests):
    source = TransitionSource


class TestFewTransitions(CandidateSourceTests):
    source = TransitionSource
    options: ClassVar = {"edges": 2, "last": 1}


class TestItemNeighbours(CandidateSourceTests):
    source = ItemNeighbourSource
    options: ClassVar = {"neighbours": N_ITEMS}


class TestPopularity(CandidateSourceTests):
    source = PopularitySource


def test_transitions_are_the_edges_of_the_last_steps():
    log, histories = made_up_histories(seed=2), made_up_histories(seed=1)
    options = TransitionSource.Options(edges=N_ITEMS, last=2, decay=0.5)
    found = TransitionSource(TransitionSource.fit(log, N_ITEMS, options), options).find(inputs_of(histories), N_ITEMS)
    graph = sparse.transition_graph(log, N_ITEMS).toarray()
    for user, got in enumerate(by_user(found, histories.n_users)):
        start, end = histories.offsets[user : user + 2]
        scores, age, last = np.zeros(N_ITEMS + 1), -1, None
        for place in range(end - 1, start - 1, -1):
            if histories.timestamps[place] != last:
                age, last = age + 1, histories.timestamps[place]
            if age < 2:
                scores += 0.5**age * graph[histories.items[place]]
        best = max(scores.max(), 1e-30)
        wanted = {row: value / best for row, value in enumerate(scores) if value > 0 and row > 0}
        assert got.keys() == wanted.keys()
        assert got == pytest.approx(wanted, rel=1e-4)


def test_only_the_strongest_edges_are_kept():
    log = made_up_histories(seed=2)
    state = TransitionSource.fit(log, N_ITEMS, TransitionSource.Options(edges=3))
    graph = sparse.transition_graph(log, N_ITEMS).toarray()
    for item in range(1, N_ITEMS + 1):
        edges = slice(int(state["starts"][item]), int(state["starts"][item + 1]))
        strongest = np.sort(graph[item][graph[item] > 0])[::-1][:3]
        np.testing.assert_allclose(state["weights"][edges].numpy(), strongest, rtol=1e-6)
        np.testing.assert_allclose(graph[item][state["items"][edges].numpy()], strongest, rtol=1e-6)


def test_neighbours_are_cosines_to_the_last_items():
    histories = made_up_histories(seed=1)
    inputs = inputs_of(histories)
    options = ItemNeighbourSource.Options(last=2, decay=0.5, neighbours=N_ITEMS)
    found = by_user(ItemNeighbourSource({}, options).find(inputs, N_ITEMS), histories.n_users)
    units = torch.nn.functional.normalize(inputs.item_vectors_VD, dim=1)
    for user, got in enumerate(found):
        start, end = histories.offsets[user : user + 2]
        weights, age, last = {}, -1, None
        for place in range(end - 1, start - 1, -1):
            if histories.timestamps[place] != last:
                age, last = age + 1, histories.timestamps[place]
            if age < 2:
                weights[int(histories.items[place])] = weights.get(int(histories.items[place]), 0) + 0.5**age
        scores = {}
        for row in range(1, N_ITEMS + 1):
            near = ((item, weight) for item, weight in weights.items() if item != row)
            scores[row] = sum(weight * max(0.0, float(units[row] @ units[item])) for item, weight in near)
        best = max(scores.values())
        wanted = {row: value / best for row, value in scores.items() if value > 1e-7}
        assert got.keys() == wanted.keys()
        assert got == pytest.approx(wanted, abs=1e-4)


def test_popularity_counts_the_last_days_and_fades_with_the_history():
    days = np.array([0, 50, 60, 61, 62, 62, 62])
    items = np.array([9, 9, 3, 3, 7, 3, 0])
    log = Sequences(np.array([1]), np.array([0, 7]), items, 1_600_000_000_000_000 + days * DAY_US)
    source = PopularitySource(PopularitySource.fit(log, N_ITEMS))
    found = by_user(source.find(inputs_of(made_up_histories((0, 5))), 10), 2)
    best = math.log1p(3)
    scores = {3: 1.0, 9: math.log1p(1) / best, 7: math.log1p(1) / best}  # of day 0 there is nothing left
    assert found[0] == pytest.approx(scores)
    assert found[1] == pytest.approx({row: score / 2 for row, score in scores.items()})
    assert list(by_user(source.find(inputs_of(made_up_histories((0,))), 2), 1)[0]) == [3, 7]  # of equals the lower row
