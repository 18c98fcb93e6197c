"""Encoders side by side are so many encoders, each on its own columns."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bseq_plugin import (
    Negatives,
    PackedEvents,
    Recipe,
    RecipeError,
    SequenceInterestEncoder,
    Sequences,
    Targets,
    history_features,
)
from bseq_plugin.losses.softmax import SoftmaxLoss
from bseq_plugin.model.ensemble import Ensemble, ensemble_loss

RECIPE = Recipe(
    encoder={"max_length": 6, "n_blocks": 1, "n_heads": 2}, vectors={"dim": 4, "ensemble": 3}, events={"features": ()}
)
N_ITEMS = 20


@pytest.fixture
def encoder():
    torch.manual_seed(3)
    return SequenceInterestEncoder(RECIPE, N_ITEMS).eval()


@pytest.fixture
def histories():
    rng = np.random.default_rng(1)
    lengths = rng.integers(0, 7, 9)
    return Sequences(np.arange(9), np.append(0, lengths.cumsum()), rng.integers(1, N_ITEMS + 1, lengths.sum()))


def members_of(encoder):
    """Each member as an encoder of its own, with its columns of the table."""
    table_VD = encoder.embedding_collection.embeddings["item"].weight
    for number, part in enumerate(encoder.sequence_encoder.part.parts):
        own = SequenceInterestEncoder(RECIPE.replace(vectors={"ensemble": 1}), N_ITEMS).eval()
        own.sequence_encoder.part.load_state_dict(part.state_dict())
        own.embedding_collection.embeddings["item"].weight.data.copy_(table_VD[:, 4 * number : 4 * number + 4])
        yield own, table_VD[:, 4 * number : 4 * number + 4]


def interests(encoder, histories):
    return encoder(history_features(histories, RECIPE))["user_interest"]


@torch.no_grad()
def test_a_score_is_the_mean_of_the_members_scores(encoder, histories):
    table_VD = encoder.embedding_collection.embeddings["item"].weight
    found_BV = interests(encoder, histories) @ table_VD.T
    wanted_BV = torch.stack([interests(own, histories) @ rows_Vd.T for own, rows_Vd in members_of(encoder)]).mean(0)
    assert torch.allclose(found_BV, wanted_BV, atol=1e-6)


def test_members_begin_differently(encoder):
    first, second, _ = encoder.sequence_encoder.part.parts
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)


def test_the_loss_is_the_mean_of_the_ensemble_losses():
    torch.manual_seed(0)
    states_QD, vectors_ND = torch.randn(7, 12).double(), torch.randn(15, 12).double()
    ids_S, state_S = torch.randint(0, 15, (7,)), torch.arange(7)
    targets = Targets(vectors_ND[ids_S], ids_S, state_S, torch.ones(7).double(), ids_S)
    negatives = Negatives(vectors_ND, torch.arange(15))
    loss = SoftmaxLoss()
    loss.settle({"matmul": "float32"})
    found = ensemble_loss(loss, 3, (states_QD / 3).float(), _float(targets), _float(negatives))
    wanted = 0.0
    for part in (slice(0, 4), slice(4, 8), slice(8, 12)):
        wanted += F.cross_entropy(states_QD[:, part] @ vectors_ND[:, part].T, ids_S) / 3
    assert float(found) == pytest.approx(float(wanted), abs=1e-5)


def _float(part):
    return type(part)(*(v.float() if torch.is_tensor(v) and v.is_floating_point() else v for v in vars(part).values()))


def test_no_member_reads_the_columns_of_another(encoder):
    part = encoder.sequence_encoder.part
    x_TD = torch.randn(5, 12, requires_grad=True)
    part(PackedEvents(x_TD, torch.tensor([0, 2, 5])))[:, :4].sum().backward()
    assert x_TD.grad[:, :4].abs().sum() > 0
    assert x_TD.grad[:, 4:].abs().sum() == 0


def test_some_states_are_those_of_the_members(encoder):
    part = encoder.sequence_encoder.part
    assert isinstance(part, Ensemble)
    events = PackedEvents(torch.randn(5, 12), torch.tensor([0, 2, 5]))
    rows = torch.tensor([4, 1])
    with torch.no_grad():
        assert torch.allclose(part.states_at(events, rows), part(events)[rows], atol=1e-6)


@pytest.mark.parametrize("name", ["mean", "causal"])
def test_attention_is_the_mean_of_the_members(name):
    encoder = SequenceInterestEncoder(RECIPE.replace(encoder={"name": name}), N_ITEMS).eval()
    events = PackedEvents(torch.randn(5, 12), torch.tensor([0, 2, 5]))
    members = [
        part.attention(replace(events, x_TD=own))
        for part, own in zip(encoder.sequence_encoder.part.parts, events.x_TD.chunk(3, 1), strict=True)
    ]
    assert torch.allclose(encoder.sequence_encoder.part.attention(events), torch.stack(members).mean(0))


def test_members_without_attention_have_none_together():
    encoder = SequenceInterestEncoder(RECIPE.replace(encoder={"name": "gru"}), N_ITEMS)
    assert encoder.sequence_encoder.part.attention(PackedEvents(torch.randn(5, 12), torch.tensor([0, 2, 5]))) is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"similarity": "cosine"}, "vectors: ensemble = 3 averages inner products"),
        ({"ensemble": 0}, "vectors.ensemble = 0"),
    ],
)
def test_what_can_not_be_averaged_is_refused(values, message):
    with pytest.raises(RecipeError, match=message):
        RECIPE.replace(vectors=values)
