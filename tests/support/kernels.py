"""Draws in compiled kernels, and how they are compared with eager ones."""

import functools
import math
import shutil

import pytest
import torch

import torch_kinit as kinit
from torch_kinit.streams import compiled

INF = math.inf
KEY = kinit.Key(3)
LEAST, CHUNK, SHARED = compiled._LEAST, compiled._CHUNK, compiled._SHARED
LAWS = {
    "uniform, symmetric": kinit.random_uniform_,
    "uniform, from zero": functools.partial(kinit.random_uniform_, low=0, high=0.3),
    "uniform": functools.partial(kinit.random_uniform_, low=-0.1, high=0.7),
    "truncated": kinit.trunc_normal_,
    "truncated, moved": functools.partial(kinit.trunc_normal_, mean=0.3, std=2.0, lower=-0.5, upper=1.5),
    "truncated, wide": functools.partial(kinit.trunc_normal_, mean=-1.0, lower=-4, upper=3.1),
    "one-sided": functools.partial(kinit.trunc_normal_, mean=0.1, lower=-INF, upper=0.5),
    "normal": kinit.random_normal_,
    "normal, moved": functools.partial(kinit.random_normal_, mean=-7.0, std=3.0),
}
every_law = pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)


@functools.cache
def compiler_of(device):
    """Why kernels cannot be compiled for a device, or nothing."""
    if device != "cpu":
        return "compiled() is for the CPU"
    return "" if any(map(shutil.which, ("cc", "gcc", "clang"))) else "no C compiler"


def compilable(device):
    """The device, for which kernels can be compiled, or the test is skipped."""
    if reason := compiler_of(device.type):
        pytest.skip(reason)
    return device


def drawn(law, *arguments, key=KEY, **settings):
    """An empty tensor of these arguments, filled."""
    return law(torch.empty(*arguments, **settings), generator=key)


def check_same(ours, eager):
    """Raise AssertionError unless two tensors are equal in dtype and every bit."""
    assert ours.dtype == eager.dtype
    bits = {2: torch.int16, 4: torch.int32}[ours.itemsize]
    assert torch.equal(ours.contiguous().view(bits).cpu(), eager.contiguous().view(bits).cpu())
