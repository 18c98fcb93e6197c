"""The conformance suite over switches of ``causal``, and what its dropout is."""

import math
from typing import ClassVar

import pytest
import torch

from bseq_plugin import dropout
from bseq_plugin.encoders.causal import CausalEncoder
from bseq_plugin.testing.encoders import EncoderTests


@pytest.mark.parametrize("share", [0.01, 0.03, 0.1, 0.5, 0.9, 0.97])
def test_dropout_keeps_its_share_and_the_mean(share):
    torch.manual_seed(0)
    x = torch.ones(1001, 103, requires_grad=True)
    found = dropout(x, share, True)
    share = round(share * 256) / 256 if 1 / 32 <= share <= 31 / 32 else share  # what it says it rounds to
    error = 4 * math.sqrt(share * (1 - share) / x.numel())  # four standard deviations
    assert abs(float((found == 0).double().mean()) - share) < error
    torch.testing.assert_close(found[found > 0], torch.full_like(found[found > 0], 1 / (1 - share)), rtol=1e-6, atol=0)
    # the eight numbers out of one draw, and neighbouring draws, have nothing to do with each other
    kept = (found.flatten() > 0).double()
    for lag in range(1, 9):
        both = float((kept[lag:] * kept[:-lag]).mean())
        assert abs(both - (1 - share) ** 2) < 3 * error
    found.sum().backward()
    torch.testing.assert_close(x.grad, found.detach())
    assert dropout(x, share, False) is x


class Switched(EncoderTests):
    encoder = CausalEncoder


class TestPostNormWithFilter(Switched):
    options: ClassVar = {"norm": "post", "filter_weight": 0.5, "position": "oldest"}


class TestAll(Switched):
    options: ClassVar = {
        "norm": "post",
        "position": "none",
        "filter_weight": 0.7,
        "final_norm": False,
        "n_heads": 4,
        "event_dropout": 0.2,
    }


class TestFilterAlone(Switched):
    options: ClassVar = {"filter_weight": 1.0}

    def test_gradients_reach_events_and_parameters(self):
        self.options = {"filter_weight": 0.99}  # with all the weight on the filter, attention gets a gradient of zeros
        super().test_gradients_reach_events_and_parameters()
