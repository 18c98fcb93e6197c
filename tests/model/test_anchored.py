"""Interests beside the whole one, against loops; the whole one is what it is alone, bit for bit."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bseq_plugin import (
    Events,
    InterestModel,
    Negatives,
    PackedEvents,
    Recipe,
    RecipeError,
    Retriever,
    Sequences,
    Targets,
    publish,
    train,
)
from bseq_plugin.model import anchored
from bseq_plugin.model.anchored import AnchoredInterests, merged_softmax
from bseq_plugin.testing.encoders import DIM, EncoderTests

E = DIM + 2  # two popularity columns
KINDS = ["self_attention", "routing"]


def build(kind, n_interests, begun=False):
    torch.manual_seed(0)
    made = AnchoredInterests(DIM, E, n_interests, kind).double()
    if not begun:
        nn.init.normal_(made.out.weight, std=0.5)
    return made


def given_events(lengths, seed=1):
    events = EncoderTests.events(lengths, seed)
    anchor = torch.randn(len(lengths), E, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return events.with_x(events.x_TD.double()), anchor


def naive_pool(pool, kind, rows, n):
    """n vectors of one user's events, event by event."""
    if not rows:
        return [torch.zeros(DIM, dtype=torch.float64)] * n
    if kind == "self_attention":
        scores = [pool.out.weight @ torch.tanh(pool.into.weight @ x) for x in rows]
        totals = [sum(math.exp(float(s[k])) for s in scores) for k in range(n)]
        return [sum(math.exp(float(s[k])) / totals[k] * x for s, x in zip(scores, rows, strict=True)) for k in range(n)]
    mapped = [pool.bilinear.weight @ x for x in rows]
    logits = [[float(pool.seeds.weight[k] @ u) for k in range(n)] for u in mapped]
    for _ in range(3):
        found = []
        for k in range(n):
            shares = [math.exp(row[k]) / sum(math.exp(b) for b in row) for row in logits]
            total = sum(share * u for share, u in zip(shares, mapped, strict=True))
            length = float(total.norm())
            found.append(length**2 / (1 + length**2) * total / length)
        logits = [[b + float(found[k] @ u) for k, b in enumerate(row)] for row, u in zip(logits, mapped, strict=True)]
    return [math.sqrt(DIM) * x for x in found]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=4), st.sampled_from(KINDS), st.integers(2, 5))
@settings(max_examples=40, deadline=None)
@torch.no_grad()
def test_interests_are_the_anchor_and_what_is_added(lengths, kind, n_interests):
    """Also where K is larger than the history, and for users without events."""
    (events, anchor), made = given_events(lengths), build(kind, n_interests)
    bounds, expected = events.offsets_B1.tolist(), []
    for user, (start, end) in enumerate(itertools.pairwise(bounds)):
        rows = [x / x.norm() * math.sqrt(DIM) for x in events.x_TD[start:end]]
        pooled = naive_pool(made.pool, kind, rows, n_interests - 1)
        added = [made.out.weight @ p for p in pooled]
        expected.append(torch.stack([anchor[user], *(anchor[user] + x for x in added)]))
    with torch.no_grad():
        found = made(events, anchor)
        torch.testing.assert_close(found, torch.cat(expected), rtol=1e-6, atol=1e-7)
        newest = (events.offsets_B1[1:] - 1)[events.lengths_B > 0].flip(0)
        users = events.user_T[newest]
        if len(users):
            chosen = torch.cat([expected[user] for user in users.tolist()])
            torch.testing.assert_close(made(events, anchor[users], newest), chosen, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_all_begin_as_the_anchor(kind):
    (events, anchor), made = given_events((3, 0, 1, 12)), build(kind, 4, begun=True)
    assert torch.equal(made(events, anchor), anchor.repeat_interleave(4, 0))


@pytest.mark.parametrize("kind", KINDS)
def test_users_and_events_may_come_in_any_order(kind):
    """An interest is its own user's, and what is added knows no order of events."""
    lengths, made = (4, 2, 0, 7), build(kind, 3)
    events, anchor = given_events(lengths)
    found = made(events, anchor).view(4, 3, E)
    rows, order = torch.arange(13).split(lengths), [3, 1, 0, 2]
    mixed = torch.cat([rows[user].flip(0) for user in order])
    offsets = torch.tensor([0, *np.cumsum([lengths[user] for user in order])])
    other = made(PackedEvents(events.x_TD[mixed], offsets), anchor[order]).view(4, 3, E)
    torch.testing.assert_close(other, found[order])


@pytest.mark.parametrize("kind", KINDS)
def test_more_interests_than_events(kind):
    """Without events all are the anchor."""
    (events, anchor), made = given_events((0, 1, 2)), build(kind, 5)
    found = made(events, anchor).view(3, 5, E)
    assert torch.isfinite(found).all()
    assert torch.equal(found[0], anchor[0].expand(5, -1))
    if kind == "self_attention":  # a mean of one event is that event
        torch.testing.assert_close(found[1, 1:], found[1, 1:2].expand(4, -1))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_end_at_the_anchor_and_the_events(kind):
    (events, anchor), made = given_events((4, 0, 2)), build(kind, 3)
    x_TD, anchor = events.x_TD.requires_grad_(), anchor.requires_grad_()
    found = made(events.with_x(x_TD), anchor).view(3, 3, E)
    found[:, 1:].square().sum().backward(retain_graph=True)
    assert all(bool((p.grad.abs() > 0).any()) for p in made.parameters())
    assert x_TD.grad is None
    assert anchor.grad is None or not anchor.grad.any()
    found[:, 0].sum().backward()
    assert torch.equal(anchor.grad, torch.ones_like(anchor))


def naive_merged(interests, targets, negatives):
    """Item by item: the largest score, softly; a user's targets and the other negatives share one distribution."""
    total = 0.0

    def largest(user, vector):
        return 0.5 * (2 * interests[user] @ vector).logsumexp(0)

    for s, (user, row) in enumerate(zip(targets.state_S.tolist(), targets.ids_S.tolist(), strict=True)):
        of_all = zip(targets.ids_S.tolist(), targets.vectors_SD, targets.state_S.tolist(), strict=True)
        own = {i: v for i, v, u in of_all if u == user}
        terms = [largest(user, v) for v in own.values()]
        for n, item in enumerate(negatives.ids_N.tolist()):
            if item not in own:
                expected = negatives.log_expected_count_N
                score = largest(user, negatives.vectors_ND[n])
                terms.append(score if expected is None else score - expected[n])
        log_share = largest(user, own[row]) - torch.stack(terms).logsumexp(0)
        total = total - targets.weights_S[s] * log_share
    return total / targets.weights_S.sum()


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_the_loss_is_that_of_the_merged_scores(data):
    """Value and gradients, over the whole catalogue and over a sample with repeats, in chunks of any size."""
    n_users, n_interests, n_items = data.draw(st.integers(1, 4)), data.draw(st.integers(2, 4)), 7
    random = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    items = torch.randn(n_items + 1, E, generator=random, dtype=torch.float64)
    pairs = data.draw(st.sets(st.tuples(st.integers(0, n_users - 1), st.integers(1, n_items)), min_size=1))
    state, ids = (torch.tensor(x) for x in zip(*sorted(pairs), strict=True))
    weights = torch.rand(len(ids), generator=random, dtype=torch.float64) + 0.1
    if data.draw(st.booleans()):
        drawn, expected = torch.arange(1, n_items + 1), None
    else:
        drawn = torch.tensor(data.draw(st.lists(st.integers(1, n_items), min_size=1, max_size=9)))
        expected = torch.randn(len(drawn), generator=random, dtype=torch.float64)
    given_ = items[drawn].requires_grad_()
    targets, negatives = Targets(items[ids], ids, state, weights), Negatives(given_, drawn, expected)
    interests = torch.randn(n_users, n_interests, E, generator=random, dtype=torch.float64).requires_grad_()
    wanted = naive_merged(interests, targets, replace(negatives, vectors_ND=given_.detach()))
    (slope,) = torch.autograd.grad(wanted, interests)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(anchored, "CHUNK_ELEMENTS", data.draw(st.sampled_from([1, 40, 1 << 20])))
        found = merged_softmax(interests, targets, negatives)
    found.backward()
    torch.testing.assert_close(found.detach(), wanted.detach())
    torch.testing.assert_close(interests.grad[:, 1:], slope[:, 1:])
    assert not interests.grad[:, 0].any()
    assert given_.grad is None


def test_without_targets_there_is_nothing_to_learn():
    interests, none = torch.randn(2, 3, E, requires_grad=True), torch.empty(0, dtype=torch.int64)
    targets = Targets(torch.empty(0, E), none, none, torch.empty(0))
    loss = merged_softmax(interests, targets, Negatives(torch.randn(4, E), torch.arange(1, 5)))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert not interests.grad.any()


@pytest.mark.parametrize(
    ("interests", "message"),
    [
        ({"kind": "one", "anchored": True}, "unknown key 'interests.anchored' with kind = 'one'"),
        ({"kind": "several", "anchored": True, "n": 1}, "interests beside the first one; use n = 2 or more"),
    ],
)
def test_there_is_something_beside_the_anchor(interests, message):
    with pytest.raises(RecipeError, match=message):
        Recipe(interests=interests, objective="prefix")


RECIPE = Recipe(
    encoder={"name": "causal", "n_blocks": 1, "max_length": 8, "dropout": 0.2},
    vectors={"dim": DIM},
    events={"features": ()},
    objective="prefix",
    split="none",
    training={"epochs": 5, "batch": {"users": 64}, "table": {"rate": 0.2}, "dense": {"rate": 1e-2}},
)
ANCHORED = RECIPE.replace(interests={"kind": "several", "n": 4, "anchored": True})


@pytest.fixture(scope="module")
def two_tastes():
    """Each user goes through two of six worlds at random: one vector can't be near both alone."""
    random, rows = np.random.default_rng(0), []
    for user in range(120):
        worlds = [user % 6, (user + 1 + user % 5) % 6]
        for place in range(10):
            rows.append((user, 10 * worlds[random.integers(2)] + random.integers(5), 1_600_000_000 + 3600 * place))
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    return Events.from_frame(frame, timestamp_unit="s")


@pytest.mark.parametrize(("kind", "loss", "epochs"), [("self_attention", "softmax", 5), ("routing", "gbce", 12)])
def test_the_anchor_learns_what_it_learns_alone_and_the_others_add_to_it(two_tastes, tmp_path, kind, loss, epochs):
    first = RECIPE.replace(loss=loss, training={"epochs": epochs})
    alone = InterestModel.from_run(train(two_tastes, first, tmp_path / "a", progress=False).path)
    recipe = ANCHORED.replace(interests={"method": kind}, loss=loss, training={"epochs": epochs})
    run = train(two_tastes, recipe, tmp_path / "b", progress=False)
    model = InterestModel.from_run(run.path)
    assert torch.equal(model.item_table_VD, alone.item_table_VD)
    histories = Sequences.from_events(two_tastes, model.vocabulary)
    interests_BKD = model.encode(histories)
    assert torch.equal(interests_BKD[:, :1], alone.encode(histories))
    torch.testing.assert_close(model.encode(histories, wide=True), interests_BKD, rtol=1e-3, atol=1e-4)

    keys = np.unique(histories.user_index * 100 + histories.items)  # what each had in the end
    ids = torch.from_numpy(keys % 100)
    targets = Targets(model.item_vectors_VD[ids], ids, torch.from_numpy(keys // 100), torch.ones(len(ids)))
    catalogue = Negatives(model.item_vectors_VD[1:], torch.arange(1, len(model.item_vectors_VD)))
    merged, first = (merged_softmax(x, targets, catalogue) for x in (interests_BKD, interests_BKD[:, :1]))
    assert float(merged) < float(first) - 0.02

    publish(run, tmp_path / "store")
    hits = Retriever.open(tmp_path / "store").retrieve(histories, k=5, exclude="none", blend=False)
    for user, own in hits.groupby("user_id"):  # an item has the anchor's score and the best addition, if there is one
        scores = {}
        for row, item in enumerate(model.vocabulary.item_ids.tolist(), 1):
            whole, *others = (interests_BKD[user] @ model.item_vectors_VD[row]).tolist()
            scores[item] = whole + max(0.0, *(score - whole for score in others))
        best = sorted(scores, key=lambda item: -scores[item])[:5]
        assert own["item_id"].tolist() == best
        np.testing.assert_allclose(own["score"], [scores[item] for item in best], rtol=1e-5, atol=1e-6)
    assert hits["interest"].max() > 0
