"""What the feature tests share."""

from __future__ import annotations

import pytest

from bseq_plugin.feature_generators import FEATURES
from bseq_plugin.testing.ranking_features import manager_with


@pytest.fixture(scope="session")
def manager():
    """Only our own features, whatever plugins are installed here."""
    return manager_with(*FEATURES)
