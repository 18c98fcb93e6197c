import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """The matrices here are tiny: more than one thread only costs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
