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
TAILS = {
    "a tail": functools.partial(kinit.trunc_normal_, lower=3, upper=INF),
    "a lower tail, moved": functools.partial(kinit.trunc_normal_, mean=0.4, std=0.3, lower=-5, upper=-1),
    "a narrow tail, far out": functools.partial(kinit.trunc_normal_, lower=20, upper=20.5),
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
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[ours.itemsize]
    assert torch.equal(ours.contiguous().view(bits).cpu(), eager.contiguous().view(bits).cpu())


def as_argument(convert, value):
    """A kernel's argument: a number is a float32, where Triton's interpreter leaves a Python float, and loses -0.0."""
    if not isinstance(value, float):
        return convert(value)
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    return tl.tensor(TensorHandle(np.array([value], np.float32), tl.float32), tl.float32)


def rounded_once(builder, x, y, z):
    """x*y + z of float32 as `tl.fma` has it on every device, rounded once; Triton's interpreter rounds twice.

    The product is exact in float64. Where the sum is not, its last bit is made odd, towards what was lost (Knuth's
    error of a sum), so that the sum does not lie on the middle of two float32 numbers unless the exact one does.
    """
    import numpy as np
    from triton.runtime.interpreter import TensorHandle

    product, addend = np.multiply(x.data, y.data, dtype=np.float64), z.data.astype(np.float64)
    total = product + addend
    part = total - product
    lost = (product - (total - part)) + (addend - part)
    bits = total.view(np.int64)
    odd = bits + np.where((lost > 0) == (total > 0), 1, -1)
    bits = np.where((lost != 0) & (bits & 1 == 0), odd, bits)
    return TensorHandle(bits.view(np.float64).astype(np.float32), z.dtype.scalar)
