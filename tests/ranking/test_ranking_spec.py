"""Feature specifications: names, order, files, errors."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from bseq_plugin.errors import PluginError, UsageError
from bseq_plugin.feature_generators import FEATURES
from bseq_plugin.ranking import FeatureSpec
from bseq_plugin.testing.ranking_features import manager_with


def write(folder, text):
    path = folder / "features.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_default_is_all_of_ours(manager):
    spec = FeatureSpec.default()
    assert spec.classes(manager) == list(FEATURES)
    assert (spec.history_length, spec.ttl_days) == (200, None)
    with pytest.raises(ValidationError, match="frozen"):
        spec.history_length = 1


def test_a_file_says_names_in_order(tmp_path, manager):
    path = write(tmp_path, 'description = "two"\nnames = ["sim_last1", "sim_max"]\nttl_days = 0.5\n')
    spec = FeatureSpec.load(path, manager)
    assert spec == FeatureSpec(names=("sim_last1", "sim_max"), ttl_days=0.5)
    assert [cls.name for cls in spec.classes(manager)] == ["sim_last1", "sim_max"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('names = ["sim_max", "sim_min"]', "unknown ranking feature 'sim_min'; there are: hist_sim_max, hist_sim_mean"),
        ('names = ["sim_max", "sim_max"]', r"\['sim_max'\] are named twice"),
        ("names = []", "names = .*at least 1 item"),
        ("history_length = 0", "history_length = 0: .*greater than or equal to 1"),
        ("ttl_days = 0", "ttl_days = 0"),
        ("length = 3", "unknown key 'length'; the keys are: history_length, names, ttl_days"),
        ("names = [", "is not valid TOML"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, manager, text, message):
    with pytest.raises(UsageError, match=message):
        FeatureSpec.load(write(tmp_path, text), manager)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UsageError, match="there is no feature specification file"):
        FeatureSpec.load(tmp_path / "features.toml")


def test_a_class_of_another_kind_is_refused():
    class Odd:
        name = "odd"

    with pytest.raises(PluginError, match="Odd does not derive from RankingFeature"):
        FeatureSpec(names=("odd",)).classes(manager_with(Odd))
