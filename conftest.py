"""The names that doctests in the package and the README use without importing them."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _names(doctest_namespace):
    doctest_namespace["torch"] = torch
