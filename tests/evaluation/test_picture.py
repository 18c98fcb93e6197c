"""The picture shows what was measured: read the bars back from the drawing."""

import sys

import numpy as np
import pytest

from bseq_plugin import MissingDependencyError, Sequences
from bseq_plugin.data.splits import EvaluationSet
from bseq_plugin.evaluation import picture as report
from bseq_plugin.evaluation.report import compare


@pytest.fixture
def measured():
    n_users, n_items = 20, 12
    rng = np.random.default_rng(0)
    histories = Sequences(np.arange(n_users), np.arange(n_users + 1), rng.integers(1, n_items + 1, n_users))
    targets = rng.integers(1, n_items + 1, n_users)
    held_out = EvaluationSet(histories, np.arange(n_users + 1), targets)
    rankers = {
        "baseline": lambda histories, k, mask: np.tile(np.arange(1, k + 1), (histories.n_users, 1)),
        "model": lambda histories, k, mask: np.column_stack([targets, np.full((n_users, k - 1), -1)]),
    }
    return compare(held_out, rankers, n_items, ks=(3,))


def test_bars_are_the_means_and_the_best_is_on_top(measured, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, path, dpi: drawn.append(self))
    report.draw_comparisons({"all": measured}, "ndcg@3", tmp_path / "picture.png")
    (panel,) = drawn[0].axes
    widths = [bar.get_width() for bar in panel.patches]
    assert widths == [measured.mean("baseline", "ndcg@3"), measured.mean("model", "ndcg@3")]
    assert [label.get_text() for label in panel.get_yticklabels()] == ["baseline", "model"]


def test_a_png_is_written(measured, tmp_path):
    report.draw_comparisons({"all": measured, "new": measured}, "recall@3", tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_message_names_the_remedy(measured, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match="pip install"):
        report.draw_comparisons({"all": measured}, "ndcg@3", tmp_path / "picture.png")
