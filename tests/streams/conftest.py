"""What tests of the kernels share."""

import pytest

from tests.support.kernels import count_together, interpret


@pytest.fixture
def interpreted(monkeypatch):
    """Lets Triton's interpreter run the kernels on the CPU; gives the number of values of each launch."""
    return interpret(monkeypatch)


@pytest.fixture
def together(interpreted, monkeypatch):
    """Likewise; gives the law and the number of tensors of each launch for many."""
    return count_together(monkeypatch)
