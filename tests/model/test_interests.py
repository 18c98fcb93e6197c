"""Several interests a user, against loops in float64; what is trained, published and retrieved with them."""

import itertools
import math

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
    PackedEvents,
    Recipe,
    RecipeError,
    Retriever,
    SequenceInterestTask,
    Sequences,
    Targets,
    history_features,
    publish,
    train,
)
from bseq_plugin.model.interests import MultiInterests, label_aware, squash
from bseq_plugin.testing.encoders import EncoderTests

D = 8
KINDS = ["self_attention", "routing"]


def build(kind, n_interests):
    torch.manual_seed(0)
    made = MultiInterests(D, n_interests, kind).double()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.5)
    return made


def naive(made, kind, states_LD, n_interests):
    """The K interests of one user, event by event."""
    pool = made.pool
    if len(states_LD) == 0:
        return torch.zeros(n_interests, D, dtype=torch.float64)
    if kind == "self_attention":
        scores = [pool.out.weight @ torch.tanh(pool.into.weight @ h) for h in states_LD]
        found = []
        for k in range(n_interests):
            weights = [math.exp(float(s[k])) for s in scores]
            found.append(sum(w / sum(weights) * h for w, h in zip(weights, states_LD, strict=True)))
    else:
        mapped = [pool.bilinear.weight @ h for h in states_LD]
        logits = [[float(pool.seeds.weight[k] @ u) for k in range(n_interests)] for u in mapped]
        for step in range(3):
            found = []
            for k in range(n_interests):
                total = torch.zeros(D, dtype=torch.float64)
                for u, row in zip(mapped, logits, strict=True):
                    total += math.exp(row[k]) / sum(math.exp(b) for b in row) * u
                length = float(total.norm())
                found.append(length**2 / (1 + length**2) * total / length)
            if step < 2:
                for u, row in zip(mapped, logits, strict=True):
                    for k in range(n_interests):
                        row[k] += float(found[k] @ u)
    return torch.stack(found)


@given(st.lists(st.integers(0, 12), min_size=1, max_size=5), st.sampled_from(KINDS), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_interests_are_their_equations(lengths, kind, n_interests):
    """Also where K is larger than the history, and for users without events."""
    events = EncoderTests.events(lengths)
    made, states_TD = build(kind, n_interests), torch.randn(sum(lengths), D, dtype=torch.float64)
    bounds = events.offsets_B1.tolist()
    expected = [naive(made, kind, states_TD[a:b], n_interests) for a, b in itertools.pairwise(bounds)]
    with torch.no_grad():
        found = made(events, states_TD)
        torch.testing.assert_close(found, torch.cat(expected), rtol=1e-6, atol=1e-7)
        newest = (events.offsets_B1[1:] - 1)[events.lengths_B > 0].flip(0)
        chosen = [expected[user] for user in events.user_T[newest].tolist()]
        if chosen:
            torch.testing.assert_close(made(events, states_TD, newest), torch.cat(chosen), rtol=1e-6, atol=1e-7)


def test_a_squashed_vector_keeps_its_direction_and_is_shorter_than_one():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.006, 0.008]], dtype=torch.float64)
    lengths = squash(x).norm(dim=1)
    torch.testing.assert_close(lengths, torch.tensor([25 / 26, 0.0, 1e-4 / (1 + 1e-4)]).double(), rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(squash(x)[0] / lengths[0], x[0] / 5)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_everything(kind):
    made, events = build(kind, 3), EncoderTests.events((4, 0, 2))
    states_TD = torch.randn(6, D, dtype=torch.float64, requires_grad=True)
    made(events, states_TD).square().sum().backward()
    assert all(bool((p.grad.abs() > 0).any()) for p in made.parameters())
    assert bool((states_TD.grad.abs().sum(1) > 0).all())


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_target_goes_to_the_interest_that_fits_it_best(data):
    n_users, n_interests = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    states = sorted(data.draw(st.lists(st.integers(0, n_users - 1), max_size=8)))
    random = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    interests = torch.randn(n_users, n_interests, D, generator=random)
    vectors = torch.randn(len(states), D, generator=random)
    n = len(states)
    given_ = Targets(vectors, torch.arange(n), torch.tensor(states, dtype=torch.int64), torch.rand(n), torch.arange(n))
    found = label_aware(interests, given_)
    expected = []
    for s, user in enumerate(states):
        scores = [float(interests[user, k] @ vectors[s]) for k in range(n_interests)]
        expected.append((user * n_interests + scores.index(max(scores)), s))
    assert list(zip(found.state_S.tolist(), found.ids_S.tolist(), strict=True)) == sorted(expected)
    torch.testing.assert_close(found.vectors_SD, vectors[found.ids_S])
    torch.testing.assert_close(found.weights_S, given_.weights_S[found.ids_S])
    assert found.places_S.tolist() == found.ids_S.tolist()


def test_a_position_has_no_several_interests():
    with pytest.raises(RecipeError, match=r"interests.kind = 'several' reads a history as a.*'prefix' or 'window'"):
        Recipe(interests="several")


@pytest.fixture(scope="module")
def two_tastes():
    """Each user goes through two of three worlds at random: one vector can't be near both, two can."""
    random, rows = np.random.default_rng(0), []
    for user in range(90):
        worlds = [user % 3, (user + 1) % 3]
        for place in range(10):
            rows.append((user, 10 * worlds[random.integers(2)] + random.integers(6), 1_600_000_000 + 3600 * place))
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    return Events.from_frame(frame, timestamp_unit="s")


RECIPE = Recipe(
    encoder={"name": "mean", "max_length": 8, "dropout": 0.0},
    vectors={"dim": D},
    events={"features": ()},
    interests={"kind": "several", "n": 2},
    objective="prefix",
    split={"kind": "leave_one_out", "mask_seen": False},
    training={"epochs": 4, "batch": {"users": 64}, "table": {"rate": 0.2}},
)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_trained_is_what_is_published_and_retrieved(two_tastes, tmp_path, kind):
    """Stored interests, scores and merged lists are those of a loop over the model's interests."""
    run = train(two_tastes, RECIPE.replace(interests={"method": kind}), tmp_path / "run", progress=False)
    model = InterestModel.from_run(run.path)
    publish(run, tmp_path / "store")
    retriever = Retriever.open(tmp_path / "store")
    assert retriever.manifest["interests_per_user"] == 2
    histories = retriever.histories
    interests_BKD = model.encode(histories)
    assert interests_BKD.shape == (90, 2, D)
    with torch.no_grad():
        through = model.encoder(history_features(histories.latest(8), model.recipe)).values()
    torch.testing.assert_close(through.view(90, 2, D), interests_BKD, rtol=1e-4, atol=1e-5)
    wide = model.encode(histories, wide=True)
    torch.testing.assert_close(wide, interests_BKD, rtol=1e-3, atol=1e-4)
    stored = pd.read_parquet(retriever._served.version.file("interests.parquet"))
    assert stored["interest_idx"].tolist() == [0, 1] * 90
    np.testing.assert_array_equal(np.stack(stored["vector"].to_list()), interests_BKD.flatten(0, 1).numpy())
    hits = retriever.retrieve(histories, k=5, exclude="none", blend=False)
    scores_BKV = torch.einsum("bkd,vd->bkv", interests_BKD, model.item_vectors_VD[1:])
    best = scores_BKV.amax(1).topk(5).indices.numpy()
    assert hits["item_id"].to_numpy().reshape(90, 5).tolist() == model.vocabulary.item_ids[best].tolist()
    wanted = [int(scores_BKV[u, :, r].argmax()) for u, row in enumerate(best) for r in row]
    assert hits["interest"].tolist() == wanted
    assert float(run.info["validation"]["ndcg@10"]) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_both_interests_are_used(two_tastes, tmp_path, kind):
    recipe = RECIPE.replace(interests={"method": kind}, training={"epochs": 8})
    run = train(two_tastes, recipe, tmp_path / "run", progress=False)
    model = InterestModel.from_run(run.path)
    interests_BKD = model.encode(Sequences.from_events(two_tastes, model.vocabulary))
    scores_BKV = torch.einsum("bkd,vd->bkv", interests_BKD, model.item_vectors_VD[1:])
    assert set(scores_BKV.argmax(1).flatten().tolist()) == {0, 1}


def test_a_history_shorter_than_k_has_interests_that_say_the_same(two_tastes, tmp_path):
    """One event, no event, or n < K: vectors are finite, and nothing is shown twice."""
    recipe = RECIPE.replace(interests={"n": 4}, training={"epochs": 1})
    run = train(two_tastes, recipe, tmp_path / "run", progress=False)
    publish(run, tmp_path / "store")
    retriever = Retriever.open(tmp_path / "store")
    model = retriever.model
    short = Sequences(np.arange(3), np.array([0, 1, 1, 4]), np.array([1, 1, 2, 3]), np.arange(4))
    interests_BKD = model.encode(short)
    assert torch.isfinite(interests_BKD).all()
    for user in (0, 1):  # a mean of one event is that event
        torch.testing.assert_close(interests_BKD[user], interests_BKD[user, :1].expand(4, -1))
    hits = retriever.retrieve(short, k=9, exclude="none", blend=False)
    assert hits.groupby("user_id")["item_id"].nunique().tolist() == [9, 9, 9]


def test_the_loss_is_that_of_the_best_interest_of_each_target():
    """Whole-catalogue softmax over a loop: the largest score decides which interest learns."""
    torch.manual_seed(0)
    recipe = Recipe(
        encoder="mean",
        vectors={"dim": D},
        events={"features": ()},
        interests={"kind": "several", "n": 3},
        objective="prefix",
    )
    task = SequenceInterestTask(recipe, 6)
    interests = torch.randn(2 * 3, D, requires_grad=True)
    items = torch.randn(6, D)
    batch = type("B", (), {})()
    batch.negative_priors_NP = batch.target_priors_SP = batch.log_expected_count_N = None
    batch.target_places_S, batch.target_ids_S = torch.tensor([1, 4, 0]), torch.tensor([2, 5, 1])
    batch.target_state_S, batch.target_weights_S = torch.tensor([0, 0, 1]), torch.tensor([1.0, 2.0, 1.0])
    batch.negative_ids_N, batch.loss_scale = torch.arange(1, 7), torch.tensor(1.0)
    loss, out = task.objective(interests, items[:0], items, batch)
    total, by_state = 0.0, {}
    for place, state, weight in zip([1, 4, 0], [0, 0, 1], [1.0, 2.0, 1.0], strict=True):
        own = interests[3 * state : 3 * state + 3].detach() @ items.T
        by_state.setdefault((state, int(own[:, place].argmax())), []).append((place, weight))
    for (state, k), targets in by_state.items():
        logits = interests[3 * state + k].detach() @ items.T
        for place, weight in targets:
            total += weight * float(logits.logsumexp(0) - logits[place])
    assert float(out["n_targets"]) == 4.0
    assert float(loss.detach()) == pytest.approx(total / 4, rel=1e-5)
    loss.backward()
    learning = {(row // 3, row % 3) for row in interests.grad.abs().sum(1).nonzero().flatten().tolist()}
    assert learning == set(by_state)


def test_packed_events_without_anybody():
    made = build("self_attention", 2)
    none = PackedEvents(torch.empty(0, D, dtype=torch.float64), torch.zeros(1, dtype=torch.int64))
    assert made(none, none.x_TD).shape == (0, D)
