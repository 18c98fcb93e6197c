"""The best epoch's weights, from a sequence of losses, against a loop."""

import math

import pytest
import torch
from bseq_behaviour.fitting import BestWeights
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import bseq_plugin as bseq


@given(st.lists(st.integers(0, 5), max_size=12))
def test_the_first_of_the_least_losses_is_kept(losses):
    module = nn.Linear(1, 1)
    best, begun = BestWeights(module), module.weight.item()
    for epoch, loss in enumerate(losses, 1):
        with torch.no_grad():
            module.weight.fill_(epoch)
        best.see(float(loss))
    wanted = losses.index(min(losses)) + 1 if losses else 0
    assert best.epoch == wanted
    assert best.waited == len(losses) - wanted
    best.restore()
    assert module.weight.item() == (wanted or begun)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_it(loss):
    best = BestWeights(nn.Linear(1, 1))
    best.see(1.0)
    with pytest.raises(bseq.BseqError, match="in epoch 2; lower learning_rate"):
        best.see(loss)
