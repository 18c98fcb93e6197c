from typing import ClassVar

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bseq_plugin.encoders.attention import causal_attention, group_by_length
from bseq_plugin.encoders.causal import CausalEncoder
from bseq_plugin.encoders.mean import MeanEncoder
from bseq_plugin.errors import RecipeError
from bseq_plugin.testing.encoders import EncoderTests


class TestCausal(EncoderTests):
    encoder = CausalEncoder


class TestMean(EncoderTests):
    encoder = MeanEncoder


class TestMeanWithEverything(EncoderTests):
    encoder = MeanEncoder
    options: ClassVar = {"half_life_days": 0.5, "feed_forward": 6, "event_dropout": 0.3}

    def test_gradients_reach_events_and_parameters(self):
        self.options = {**self.options, "event_dropout": 0.0}  # a dropped event has no gradient
        super().test_gradients_reach_events_and_parameters()


def test_an_event_one_half_life_older_counts_half():
    events = EncoderTests.events((2,))
    options = MeanEncoder.Options(half_life_days=1 / 24)  # the events of the suite are an hour apart
    newest = MeanEncoder(8, 12, 0.0, options)(events)[1]
    torch.testing.assert_close(newest, (0.5 * events.x_TD[0] + events.x_TD[1]) / 1.5)


def test_mean_is_the_running_mean():
    events = EncoderTests.events((3, 0, 2))
    expected = []
    for start, end in ((0, 3), (3, 5)):
        for place in range(start, end):
            expected.append(events.x_TD[start : place + 1].double().mean(0))
    torch.testing.assert_close(MeanEncoder(8, 12, 0.0)(events).double(), torch.stack(expected), rtol=1e-6, atol=1e-6)


def test_grouped_attention_is_attention_of_each_user():
    lengths = (1, 7, 0, 2, 40, 3, 2)
    events = EncoderTests.events(lengths)
    torch.manual_seed(0)
    q, k, v = (torch.randn(sum(lengths), 2, 4) for _ in range(3))
    found = causal_attention(q, k, v, group_by_length(events), dropout=0.0)
    start = 0
    for length in lengths:
        rows = slice(start, start + length)
        for head in range(2):
            scores = (q[rows, head] @ k[rows, head].T).double() / 2.0
            scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
            torch.testing.assert_close(
                found[rows, head].double(), F.softmax(scores, 1) @ v[rows, head].double(), rtol=1e-4, atol=1e-5
            )
        start += length


@pytest.mark.parametrize("seed", range(3))
def test_groups_hold_every_event_once_and_little_padding(seed):
    lengths = np.random.default_rng(seed).geometric(0.1, 200)
    groups = group_by_length(EncoderTests.events(lengths.tolist()))
    real = torch.cat([rows[mask] for rows, mask in zip(groups.rows, groups.masks, strict=True)])
    assert sorted(real.tolist()) == list(range(lengths.sum()))
    assert sum(rows.numel() for rows in groups.rows) <= 1.25 * lengths.sum()


def test_heads_must_divide_dim():
    with pytest.raises(RecipeError, match="dim = 10 is not a multiple of encoder_options.n_heads = 4"):
        CausalEncoder(10, 5, 0.0, CausalEncoder.Options(n_heads=4))
