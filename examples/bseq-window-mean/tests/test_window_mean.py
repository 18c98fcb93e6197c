import torch
from bseq_window_mean import WindowMean, WindowMeanOptions

from bseq_plugin.testing.encoders import EncoderTests


class TestWindowMean(EncoderTests):
    encoder = WindowMean


class TestWindowOfOne(EncoderTests):
    encoder = WindowMean
    options = {"window": 1}  # noqa: RUF012


def test_mean_of_the_latest_two() -> None:
    events = EncoderTests.events((3, 0, 2))
    x, states = events.x_TD, WindowMean(8, 12, 0.0, WindowMeanOptions(window=2))(events)
    expected = torch.stack([x[0], (x[0] + x[1]) / 2, (x[1] + x[2]) / 2, x[3], (x[3] + x[4]) / 2])
    torch.testing.assert_close(states, expected)
