"""``masked``: the conformance suite, loops in float64, and the objective it is trained with."""

import itertools
import math
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from bseq_plugin import (
    Events,
    InterestModel,
    Recipe,
    RecipeError,
    SchemaError,
    SequenceInterestTask,
    Sequences,
    Vocabulary,
    train,
)
from bseq_plugin.data.batches import step_random
from bseq_plugin.data.masked_examples import MaskedEvents
from bseq_plugin.data.training_data import TrainingData
from bseq_plugin.encoders.masked import MaskedEncoder
from bseq_plugin.model.ensemble import Ensemble
from bseq_plugin.testing.encoders import DIM, MAX_LENGTH, EncoderTests


class TestMasked(EncoderTests):
    encoder = MaskedEncoder


class TestMaskedOneBlock(EncoderTests):
    encoder = MaskedEncoder
    options: ClassVar = {"n_blocks": 1, "n_heads": 4, "feed_forward": 5}


def build(options=None):
    """Random everywhere, also where parameters begin at zero or one."""
    torch.manual_seed(0)
    encoder = MaskedEncoder(DIM, MAX_LENGTH, 0.0, MaskedEncoder.Options(**(options or {}))).double()
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.5)
    return encoder.eval()


def naive(encoder, x_LD):
    """Every event looks at every other, pair by pair; ages count from the newest."""
    n, heads = len(x_LD), encoder.options.n_heads
    width = DIM // heads
    ages = [min(age, encoder.max_length - 1) for age in range(n - 1, -1, -1)]
    x_LD = x_LD + encoder.position.weight[ages]
    for block in encoder.blocks:
        norm = block.attention_residual.norm
        q, k, v = block.attention.query_key_value(F.layer_norm(x_LD, (DIM,), norm.weight, norm.bias)).split(DIM, 1)
        rows = []
        for i in range(n):
            parts = []
            for h in range(heads):
                own = slice(h * width, (h + 1) * width)
                scores = torch.stack([q[i, own] @ k[j, own] / math.sqrt(width) for j in range(n)])
                parts.append(scores.softmax(0) @ v[:, own])
            rows.append(torch.cat(parts))
        x_LD = x_LD + block.attention.out(torch.stack(rows))
        norm = block.feed_forward_residual.norm
        x_LD = x_LD + block.feed_forward(F.layer_norm(x_LD, (DIM,), norm.weight, norm.bias))
    return F.layer_norm(x_LD, (DIM,), encoder.norm.weight, encoder.norm.bias)


def wide(lengths):
    events = EncoderTests.events(lengths)
    return events.with_x(events.x_TD.double())


lengths_of_batches = st.lists(st.integers(0, MAX_LENGTH), min_size=1, max_size=4).filter(sum)


@given(lengths_of_batches, st.sampled_from([{}, {"n_blocks": 1, "n_heads": 4}]))
@settings(max_examples=15, deadline=None)
def test_a_state_is_that_of_a_mask_token_behind_the_history(lengths, options):
    encoder, events = build(options), wide(lengths)
    with torch.no_grad():
        found = encoder(events)
        for row in range(len(found)):
            history = events.x_TD[row - int(events.position_T[row]) : row + 1]
            torch.testing.assert_close(found[row], naive(encoder, torch.cat([history, encoder.mask.weight]))[-1])


@given(lengths_of_batches, st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_hidden_events_are_found_from_both_sides_and_not_read(lengths, seed):
    encoder, events = build(), wide(lengths)
    hidden = torch.rand(len(events.x_TD), generator=torch.Generator().manual_seed(seed)) < 0.4
    rows = hidden.nonzero().flatten()
    with torch.no_grad():
        found = encoder.masked_states_at(events, rows)
        x_TD = torch.where(hidden[:, None], encoder.mask.weight, events.x_TD)
        bounds = events.offsets_B1.tolist()
        whole = [naive(encoder, x_TD[a:b]) for a, b in itertools.pairwise(bounds) if b > a]
        torch.testing.assert_close(found, torch.cat(whole)[rows])
        other = events.with_x(torch.where(hidden[:, None], torch.randn_like(events.x_TD), events.x_TD))
        assert torch.equal(encoder.masked_states_at(other, rows), found)


def sequences(users, types=None):
    offsets = np.concatenate([[0], np.cumsum([len(u) for u in users])]).astype(np.int64)
    items = np.array([i for u in users for i in u], np.int64)
    return Sequences(np.arange(len(users)), offsets, items, event_types=types)


VOCABULARY = Vocabulary(np.arange(9), np.ones(9, np.int64), ("buy", "view"))


@given(
    st.lists(st.lists(st.integers(0, 9), max_size=9), min_size=1, max_size=9),
    st.sampled_from([0.05, 0.5, 0.95]),
    st.sampled_from([1, 2, 3]),
    st.integers(0, 3),
)
@settings(max_examples=80, deadline=None)
def test_what_is_hidden_is_what_is_asked_for(users, share, world_size, epoch):
    """Of each history at least one event, none of an unknown item; the same for any number of ranks."""
    log = sequences(users)
    recipe = Recipe(
        encoder={"max_length": 6},
        events={"features": ()},
        objective={"kind": "masked", "share": share},
        training={"batch": {"users": 4}},
    )
    usable = sorted(tuple(u[-6:]) for u in users if len(u[-6:]) > 1 and any(u[-6:]))
    if not usable:
        with pytest.raises(SchemaError):
            TrainingData(log, VOCABULARY, recipe)
        return
    ranks = [list(TrainingData(log, VOCABULARY, recipe, r, world_size).batches(epoch)) for r in range(world_size)]
    seen = []
    for batches in zip(*ranks, strict=True):
        assert sum(float(b.loss_scale) for b in batches) == pytest.approx(world_size)
        for batch in batches:
            events = batch.features["event"]
            rows, ids = batch.state_rows_Q, events.values()
            assert batch.target_ids_S.tolist() == ids[rows].tolist()
            assert (batch.target_ids_S > 0).all()
            assert batch.target_state_S.tolist() == list(range(len(rows)))
            of_users = np.searchsorted(np.cumsum(events.lengths().numpy()), rows.numpy(), side="right")
            if len(rows):
                assert set(of_users) == set(range(len(events.lengths())))
                seen += [tuple(h.tolist()) for h in events.to_dense()]
    assert sorted(seen) == usable
    alone = list(TrainingData(log, VOCABULARY, recipe).batches(epoch))
    hidden = [[int(i) for b in step for i in b.target_ids_S] for step in zip(*ranks, strict=True)]
    assert hidden == [b.target_ids_S.tolist() for b in alone]


def test_the_share_of_hidden_events_and_of_histories_that_hide_the_last_one():
    log = sequences([[1, 2, 3, 4, 5, 6, 7, 8]] * 4000)
    source = MaskedEvents(log, 8, None, 0.3)
    found = source.examples(source.users, 0, 1, step_random(0, 0, 0))
    hidden = np.zeros(log.n_events, bool)
    hidden[found.state_rows] = True
    by_user = hidden.reshape(4000, 8)
    # the last alone: drawn so (0.3), or nothing else was drawn (0.7 ** 8 and 0.3 * 0.7 ** 7 of the rest)
    alone = (by_user.sum(1) == 1) & by_user[:, -1]
    assert abs(alone.mean() - (0.3 + 0.7 * (0.7**8 + 0.3 * 0.7**7))) < 0.03
    assert abs(by_user[:, 0].mean() - 0.7 * 0.3) < 0.03
    assert by_user.any(1).all()


def test_only_events_of_the_chosen_types_are_hidden():
    types = np.array([1, 2, 2, 1, 2, 2], np.int64)
    log = sequences([[1, 2, 3], [4, 5, 6]], types)
    recipe = Recipe(
        encoder={"max_length": 6},
        events={"features": ()},
        objective={"kind": "masked", "share": 0.9, "event_types": ("buy",)},
    )
    (batch,) = TrainingData(log, VOCABULARY, recipe).batches(0)
    assert sorted(batch.target_ids_S.tolist()) == [1, 4]


def test_other_encoders_and_several_interests_are_refused():
    with pytest.raises(RecipeError, match=r"objective.kind = 'masked' needs an encoder .* 'causal' does not"):
        SequenceInterestTask(Recipe(objective="masked"), 5, 1)
    with pytest.raises(RecipeError, match="interests.kind = 'several'"):
        Recipe(encoder="masked", interests="several", objective="masked")
    with pytest.raises(RecipeError, match="dim = 9 is not a multiple"):
        MaskedEncoder(9, MAX_LENGTH, 0.0)


@pytest.mark.parametrize("objective", ["masked", "prefix"])
def test_it_learns_what_comes_next(tmp_path, objective):
    """Two cycles, 1 2 3 and 4 5 6: whoever reads the last item knows the next one."""
    users = np.repeat(np.arange(60), 8)
    place = np.tile(np.arange(8), 60)
    items = 1 + 3 * (users // 3 % 2) + (users % 3 + place) % 3
    recipe = Recipe(
        encoder={"name": "masked", "max_length": 7, "dropout": 0.0, "n_blocks": 1},
        vectors={"dim": 16},
        objective=objective,
        split={"patience": 14, "mask_seen": False},
        training={"epochs": 14, "batch": {"users": 4}, "table": {"rate": 0.3}, "dense": {"rate": 1e-2}},
    )
    run = train(Events.in_order(users, items), recipe, tmp_path / "run", progress=False)
    assert run.info["validation"]["ndcg@10"] > 0.95
    model = InterestModel.from_run(run.path)
    history = Sequences(np.zeros(1, np.int64), np.array([0, 3]), model.vocabulary.item_rows([4, 5, 6]))
    scores = model.encode(history)[0, 0] @ model.item_vectors_VD.T
    assert model.vocabulary.item_ids[int(scores[1:].argmax())] == 4


def test_members_side_by_side_find_hidden_events_each_on_its_columns():
    parts = [build(), build()]
    both = Ensemble(parts)
    assert both.predicts_masked
    events = wide((4, 3))
    doubled = events.with_x(torch.cat([events.x_TD, 2 * events.x_TD], 1))
    rows = torch.tensor([1, 5])
    expected = [part.masked_states_at(events.with_x(k * events.x_TD), rows) / 2 for k, part in enumerate(parts, 1)]
    torch.testing.assert_close(both.masked_states_at(doubled, rows), torch.cat(expected, 1))
