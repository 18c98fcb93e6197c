"""The training loop: batches against the rows there are, the epoch that is kept against a loop, the schedule."""

import math

import numpy as np
import pytest
import torch
from bseq_behaviour.fitting import Plan, batches, fit, mean_loss, parts, seeded
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import bseq_plugin as bseq


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 5), st.integers(0, 3), st.integers(1, 3))
def test_every_row_of_every_group_comes_once(sizes, batch_rows, seed, epoch):
    found = list(batches(sizes, batch_rows, seed, epoch))
    rows = sorted((group, row) for group, taken in found for row in taken.tolist())
    assert rows == [(group, row) for group, size in enumerate(sizes) for row in range(size)]
    assert all(len(taken) <= batch_rows for _, taken in found)
    assert len(found) == sum(math.ceil(size / batch_rows) for size in sizes)
    again = list(batches(sizes, batch_rows, seed, epoch))
    assert [(group, taken.tolist()) for group, taken in again] == [(group, taken.tolist()) for group, taken in found]


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {tuple(np.concatenate([rows for _, rows in batches([50], 10, seed, epoch)]).tolist())
              for seed in range(2) for epoch in range(1, 3)}  # fmt: skip
    assert len(orders) == 4
    groups = [group for group, _ in batches([20, 20, 20], 5, 0, 1)]
    assert groups != sorted(groups)  # instants come mixed


class Counting(nn.Module):
    """Its weight is the number of steps that it was asked for."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.training_at = []

    def loss(self, group, rows):
        self.training_at.append(self.training)
        return -self.weight  # with plain gradient descent of rate 1 each step adds 1


def run(module, judged, plan, sizes=(4,)):
    """Validation losses as given, one an epoch."""
    told = iter(judged)

    def validation():
        assert not module.training
        assert not torch.is_grad_enabled()
        return next(told)

    return fit(module, torch.optim.SGD(module.parameters(), lr=1.0), module.loss, sizes, plan, validation)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.integers(1, 5))
def test_the_first_of_the_least_losses_is_kept(losses, patience):
    module = Counting()
    best = run(module, map(float, losses), Plan(len(losses), 2, patience=patience))
    seen, wanted = [], 0
    for epoch, loss in enumerate(losses, 1):
        seen.append(loss)
        wanted = epoch if loss < min(losses[: epoch - 1], default=math.inf) else wanted
        if epoch - wanted >= patience:
            break
    assert (best.epoch, best.loss) == (wanted, min(seen))
    assert module.weight.item() == 2 * wanted  # two steps an epoch
    assert len(module.training_at) == 2 * len(seen)  # it stopped there
    assert all(module.training_at)
    assert not module.training


def test_without_validation_the_last_weights_stay():
    module = Counting()
    best = fit(module, torch.optim.SGD(module.parameters(), lr=1.0), module.loss, [3, 5], Plan(4, 2))
    assert (best.epoch, math.isnan(best.loss)) == (4, True)
    assert module.weight.item() == 4 * (2 + 3)
    assert not module.training


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_it(loss):
    with pytest.raises(bseq.BseqError, match="in epoch 2; lower learning_rate"):
        run(Counting(), [1.0, loss], Plan(3, 4))
    module = Counting()
    module.loss = lambda group, rows: loss * module.weight  # in training, too
    with pytest.raises(bseq.BseqError, match="in epoch 1; lower learning_rate"):
        run(module, [1.0], Plan(3, 4))


def test_the_rate_rises_in_a_line_and_falls_as_half_a_cosine():
    """The sum of the steps' rates is what a weight with gradient -1 has gone."""
    rates = []
    for step in range(20):
        rates.append(min((step + 1) / 5, 0.5 + 0.5 * math.cos(math.pi * step / 20)))
    module = Counting()
    fit(module, torch.optim.SGD(module.parameters(), lr=1.0), module.loss, [8], Plan(10, 4, warm_up=0.25))
    assert module.weight.item() == pytest.approx(sum(rates), rel=1e-5)


def test_the_mean_of_parts_is_that_of_all():
    values = torch.arange(7.0)
    assert mean_loss(lambda rows: values[rows].mean(), 7, 3) == pytest.approx(3.0)
    assert [len(part) for part in parts(np.arange(7), 3)] == [3, 2, 2]
    assert [len(part) for part in parts(np.arange(0), 3)] == [0]


def test_a_seed_is_for_the_inside_alone():
    torch.manual_seed(7)
    wanted = torch.rand(2)
    torch.manual_seed(7)
    with seeded(3):
        first = torch.rand(1)
    with seeded(3):
        assert torch.equal(torch.rand(1), first)
    assert torch.equal(torch.rand(2), wanted)


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"batch_rows": 0}, {"seed": -1}])
def test_a_plan_of_nothing_is_refused(wrong):
    with pytest.raises(bseq.UsageError, match="give 1 or more"):
        Plan(**{"epochs": 1, "batch_rows": 1, **wrong})
