"""Every feature of ours passes the suite that plugin authors use, with values that are equal to the byte."""

from __future__ import annotations

import pytest
import torch

from bseq_plugin import RankingFeature
from bseq_plugin.ranking.features import FEATURES
from bseq_plugin.testing.ranking_features import RankingFeatureTests

for _feature in FEATURES:
    _suite = type(f"Test{_feature.__name__}", (RankingFeatureTests,), {"feature": _feature, "exact": True})
    globals()[_suite.__name__] = _suite


def test_there_are_the_forty_one_of_the_documentation():
    assert len(FEATURES) == len({feature.name for feature in FEATURES}) == 41
    assert {feature.group for feature in FEATURES} == {
        "vectors", "similarity", "history", "counts", "retrieval", "quality"
    }  # fmt: skip
    for feature in FEATURES:
        assert feature.description, feature.name
        assert feature.null_rule.startswith(("NaN", "never NaN")), feature.name
        assert feature.source, feature.name
        assert feature.unit or feature.group in ("vectors", "history"), feature.name


class OverRows(RankingFeature):
    """Divides by the largest value of the block, as no feature may."""

    name = "over_rows"
    description = "a feature with a fault that the suite must find"

    def compute(self, inputs):
        """float32 [N]."""
        return inputs.candidate_N / inputs.candidate_N.max().clamp_min(1).float()


class Interfering(RankingFeature):
    """Writes into what it was given."""

    name = "interfering"
    description = "a feature with a fault that the suite must find"

    def compute(self, inputs):
        """float32 [N]."""
        return inputs.retrieval_score_N.mul_(2)


class Peeking(RankingFeature):
    """Looks at the history of the next request."""

    name = "peeking"
    description = "a feature with a fault that the suite must find"

    def compute(self, inputs):
        """float32 [N]."""
        last = inputs.items_T[-1:].float() if inputs.items_T.numel() else torch.zeros(1)
        return last.expand(inputs.candidate_N.shape[0])


@pytest.mark.parametrize(
    ("faulty", "test"),
    [
        (OverRows, "test_a_row_has_the_same_value_alone"),
        (Interfering, "test_leaves_its_inputs_alone"),
        (Peeking, "test_other_users_do_not_matter"),
    ],
)
def test_the_suite_finds_faults(faulty, test):
    suite = type("Suite", (RankingFeatureTests,), {"feature": faulty})()
    with pytest.raises(AssertionError):
        getattr(suite, test)()
