"""Recipes that hold arrays compare, wherever the arrays are."""

from functools import partial

import pytest
import torch

import torch_kinit as kinit
from torch_kinit.initializers.names import recipe


def filled_with(value):
    """The recipe of an array, or of a number."""
    return recipe(partial(kinit.constant_, value=value))


def test_equal_arrays_on_different_devices_are_equal(device):
    """An array on an accelerator is equal to the same on the CPU, and not to another."""
    ours, theirs = torch.arange(3.0), torch.arange(3.0, device=device)
    assert filled_with(ours) == filled_with(theirs)
    assert filled_with(theirs) == filled_with(ours)
    assert filled_with(ours + 1) != filled_with(theirs)


@pytest.mark.parametrize("other", [torch.ones(3), 1.0, [1.0, 1.0, 1.0]], ids=repr)
def test_an_array_without_values_is_equal_to_none(other):
    """An array on the meta device, which has no values, compares without an error, and is equal to nothing else."""
    nowhere = torch.ones(3, device="meta")
    assert filled_with(nowhere) == filled_with(nowhere)
    assert filled_with(nowhere) != filled_with(other)
    assert filled_with(other) != filled_with(nowhere)
