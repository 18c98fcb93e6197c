"""The built-in heads: the suites of their kinds, and each formula by hand."""

import math

import pytest
import torch
from bseq_behaviour.heads.catalogue import InterestsHead, OwnLayerHead
from bseq_behaviour.heads.counts import KeptShareHead, LogLinearHead
from bseq_behaviour.heads.mlp import MlpHead
from bseq_behaviour.heads.mmoe import MmoeHead
from bseq_behaviour.heads.transformer import TransformerHead, TransformerOptions
from bseq_behaviour.testing.heads import BinaryHeadTests, CatalogueHeadTests, CountHeadTests
from bseq_behaviour.testing.sequence_heads import SequenceHeadTests

import bseq_plugin as bseq


class TestMlp(BinaryHeadTests):
    head = MlpHead


class TestLogistic(BinaryHeadTests):
    head, options = MlpHead, {"hidden": 0}


class TestMmoe(BinaryHeadTests):
    head = MmoeHead


class TestOwnLayer(CatalogueHeadTests):
    head = OwnLayerHead


class TestInterests(CatalogueHeadTests):
    head = InterestsHead


class TestLogLinear(CountHeadTests):
    head = LogLinearHead


class TestKeptShare(CountHeadTests):
    head = KeptShareHead


class TestTransformer(SequenceHeadTests):
    head = TransformerHead


def test_an_own_layer_begins_as_the_interests_and_is_their_sum_with_a_layer():
    head, interests = OwnLayerHead(4), torch.randn(3, 2, 4)
    assert torch.equal(head(interests), InterestsHead(4)(interests))
    torch.nn.init.normal_(head.own.weight)
    torch.nn.init.normal_(head.own.bias)
    for user in range(3):
        for interest in range(2):
            wanted = interests[user, interest] + head.own.weight @ interests[user, interest] + head.own.bias
            torch.testing.assert_close(head(interests)[user, interest], wanted)


def test_count_heads_begin_at_what_is_usual_and_are_their_formulas():
    usual, vectors, recent = torch.tensor([0.5, 3.0]), torch.randn(4, 3), torch.rand(4, 2)
    log_linear, kept = LogLinearHead(3, usual), KeptShareHead(3, usual)
    torch.testing.assert_close(log_linear(vectors, recent), usual.expand(4, 2))
    torch.testing.assert_close(kept(vectors, recent), (recent + usual) / 2)
    for head in (log_linear, kept):
        torch.nn.init.normal_(head.linear.weight)
    torch.nn.init.normal_(kept.keep_C)
    for n in range(4):
        for c in range(2):
            layers = log_linear.linear, kept.linear
            own = [math.exp((layer.weight[c] @ vectors[n] + layer.bias[c]).item()) for layer in layers]
            share = 1 / (1 + math.exp(-kept.keep_C[c].item()))
            assert log_linear(vectors, recent)[n, c].item() == pytest.approx(own[0], rel=1e-5)
            assert kept(vectors, recent)[n, c].item() == pytest.approx(share * recent[n, c].item() + own[1], rel=1e-5)


@pytest.mark.parametrize("kind", [LogLinearHead, KeptShareHead])
def test_the_loss_is_the_poisson_deviance_of_the_rates(kind):
    """Against the likelihood of torch's own distribution, less the factorial; and finite however far a vector lies."""
    head, vectors, recent = kind(3, torch.tensor([0.5, 3.0])), torch.randn(5, 3), torch.rand(5, 2)
    torch.nn.init.normal_(head.linear.weight)
    units = torch.poisson(torch.full((5, 2), 2.0))
    likelihood = torch.distributions.Poisson(head(vectors, recent)).log_prob(units) + torch.lgamma(units + 1)
    torch.testing.assert_close(head.loss(vectors, recent, units), -likelihood.mean())
    assert torch.isfinite(head.loss(1e3 * vectors, recent, units))
    assert torch.isfinite(head(1e3 * vectors, recent)).all()


def test_sizes_that_can_not_be():
    with pytest.raises(bseq.RecipeError, match="dim = 6 is not a multiple of n_heads = 4"):
        TransformerHead(3, torch.randn(3, 2), 1, 2, TransformerOptions(dim=6, n_heads=4))
    with pytest.raises(bseq.UsageError, match="n_steps = 0"):
        TransformerHead(3, torch.randn(3, 2), 1, 0)
