from typing import ClassVar

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bseq_plugin import RecipeError
from bseq_plugin.encoders.causal import CausalEncoder
from bseq_plugin.encoders.mean import MeanEncoder
from bseq_plugin.encoders.packed.attention import TileView
from bseq_plugin.encoders.packed.layout import NARROW, STEP, WIDE, lay_out
from bseq_plugin.encoders.packed.pairs import PairFeatures
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


LENGTHS = {
    "few": (1, 7, 0, 2, 40, 3, 2),
    "alone": (0, 30),
    "one user": (5,),
    "three widths": (400, 3, 390, 0, 90, 100, 80, 1, 1, 2, 33),
}


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_attention_in_tiles_is_attention_of_each_user(lengths):
    events = EncoderTests.events(lengths)
    torch.manual_seed(0)
    view = TileView.of(events, PairFeatures())
    q, k, v = (torch.randn(sum(lengths), 2, 4) for _ in range(3))
    found = view.layout.gather(view.attend(*(view.layout.spread(x) for x in (q, k, v)), 0.0))
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
@pytest.mark.parametrize("mean", [3, 10, 100, 1000])
def test_cells_hold_every_event_once_and_little_padding(seed, mean):
    lengths = np.random.default_rng(seed).geometric(1 / mean, 200)
    events = EncoderTests.events(lengths.tolist())
    layout = lay_out(events)
    assert len(set(layout.cell_T.tolist())) == lengths.sum() == len(layout.cell_T)
    steps_T = layout.cell_T.diff()[events.user_T.diff() == 0]
    assert (steps_T == 1).all()  # a user's events stand side by side, in order
    assert layout.n_cells <= 1.3 * lengths.sum()
    assert layout.n_cells % STEP == 0
    ends = [tile.cells.stop for tile in layout.tiles]
    assert [tile.start for tile in layout.tiles] == [0, *ends[:-1]]
    assert ends[-1] == layout.n_cells
    if lengths.max() <= NARROW:
        assert len(layout.tiles) == 1


@pytest.mark.parametrize("rows", [None, [], [0], [4, 1, 5], list(range(40))], ids=str)
def test_chosen_rows_come_first_and_are_filled_up(rows):
    events = EncoderTests.events([5, 0, 3, 40])
    layout = lay_out(events)
    x_TD = torch.randn(48, 4)
    wanted = x_TD if rows is None else x_TD[rows]
    found = layout.choose(None if rows is None else torch.tensor(rows, dtype=torch.int64))(layout.spread(x_TD))
    assert len(found) % STEP == 0
    assert len(found) - len(wanted) < STEP
    assert torch.equal(found[: len(wanted)], wanted)


def test_one_long_history_does_not_widen_the_mask_of_the_short_ones():
    layout = lay_out(EncoderTests.events([5000] + [3] * 100))
    assert [(tile.n_lines, tile.width, tile.alone) for tile in layout.tiles] == [(1, 5024, True), (10, 32, False)]
    view = TileView.of(EncoderTests.events([WIDE + 1] + [3] * 100), PairFeatures())
    assert [None if pairs.mask is None else pairs.mask.numel() for pairs in view.pairs] == [None, 10 * 32 * 32]


def test_heads_must_divide_dim():
    with pytest.raises(RecipeError, match="dim = 10 is not a multiple of encoder.n_heads = 4"):
        CausalEncoder(10, 5, 0.0, CausalEncoder.Options(n_heads=4))
