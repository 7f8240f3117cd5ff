"""What all tests share: the devices there are, Keras on torch, and the names doctests use."""

import os

os.environ["KERAS_BACKEND"] = "torch"
os.environ["COLUMNS"] = "120"  # the width of tables in doctests
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pytest
import torch

DEVICES = ["cpu"]
if torch.cuda.is_available():
    DEVICES.append("cuda")
if torch.backends.mps.is_available():
    DEVICES.append("mps")


@pytest.fixture(params=DEVICES)
def device(request):
    """Each device there is."""
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def _seeded():
    """Fix torch's global seed, so that a test that draws from it draws the same each time."""
    torch.manual_seed(0)
