"""Feature tests use tiny matrices, for which more than one thread only costs."""

from __future__ import annotations

import pytest
import torch

from bseq_plugin.feature_generators import FEATURES
from bseq_plugin.testing.ranking_features import manager_with


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def manager():
    """Only our own features, whatever plugins are installed here."""
    return manager_with(*FEATURES)
