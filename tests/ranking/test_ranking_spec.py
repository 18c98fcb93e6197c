"""Feature specifications: names, order, files, errors."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from bseq_plugin import FeatureSpec, PluginError, UsageError
from bseq_plugin.ranking.features import FEATURES
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
        ('names = ["sim_max", "sim_min"]', "unknown ranking feature 'sim_min'; there are: decay_sim, din_attn_entropy"),
        ('names = ["sim_max", "sim_max"]', r"\['sim_max'\] are named twice"),
        ("names = []", "names = .*at least 1 item"),
        ("history_length = 0", "history_length = 0: .*greater than or equal to 1"),
        ("ttl_days = 0", "ttl_days = 0"),
        (
            "length = 3",
            "unknown key 'length'; the keys are: category, history_length, names, options, transform, ttl_days",
        ),
        ("[options.sim_soft]\ntau = 0", r"options.sim_soft of .*tau = 0: .*greater than 0"),
        ("[options.sim_soft]\ntemperature = 1", "unknown key 'temperature'; the keys are: tau"),
        ('names = ["sim_max"]\n[options.sim_soft]\ntau = 1', r"options are given for \['sim_soft'\], which names"),
        ("names = [", "can't be read: Invalid value"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, manager, text, message):
    with pytest.raises(UsageError, match=message):
        FeatureSpec.load(write(tmp_path, text), manager)


def test_options_reach_their_feature(tmp_path, manager):
    path = write(tmp_path, 'names = ["sim_soft", "sim_max"]\n[options.sim_soft]\ntau = 0.25\n')
    soft, largest = FeatureSpec.load(path, manager).parts(manager)
    assert soft.options.tau == 0.25
    assert largest.options == type(largest).Options()


def test_groups_are_taken_away_together(manager):
    left = FeatureSpec.without("vectors", "retrieval")
    assert {cls.group for cls in left.classes(manager)} == {"similarity", "history", "counts", "quality"}
    with pytest.raises(UsageError, match=r"unknown groups \['vector'\]; there are: \['counts'"):
        FeatureSpec.without("vector")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UsageError, match="there is no feature specification file"):
        FeatureSpec.load(tmp_path / "features.toml")


def test_a_class_of_another_kind_is_refused():
    class Odd:
        name = "odd"

    with pytest.raises(PluginError, match="Odd does not derive from RankingFeature"):
        FeatureSpec(names=("odd",)).classes(manager_with(Odd))
