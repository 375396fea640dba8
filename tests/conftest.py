"""Every test starts from the same random numbers; `-m ops` runs the tests of the ops alone."""

import pytest
import torch

from ssdkern import ops


def pytest_configure(config):
    config.addinivalue_line("markers", "ops: the tests of one op on every backend")


def pytest_collection_modifyitems(items):
    names = {f"test_{name}" for name in (*ops.__all__, "boxes")}
    for item in items:
        if item.path.stem in names:
            item.add_marker(pytest.mark.ops)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
