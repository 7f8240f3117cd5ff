"""The logarithm, sine and cosine have the bits of the C library's own, for every argument that a float32 draw can give.

The oracle is glibc's libm, called through ctypes.
"""

import array
import ctypes
import ctypes.util
import math
import platform

import pytest
import torch

from tests.support.backends import same_bits
from torch_kinit.numerics import glibc

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or tuple(map(int, platform.libc_ver()[1].split("."))) < (2, 28),
    reason="The C library is not glibc 2.28 or later.",
)


def library(name, values):
    """The float32 function `name` of libm of each value."""
    function = getattr(ctypes.CDLL(ctypes.util.find_library("m")), name)
    function.argtypes, function.restype = [ctypes.c_float], ctypes.c_float
    values = array.array("f", values.numpy().tobytes())
    return torch.frombuffer(array.array("f", map(function, values)), dtype=torch.float32)


def units():
    """The 2**23 numbers in [0, 1) that a word can become."""
    return torch.arange(1 << 23, dtype=torch.float32) * 2.0**-23


def angles():
    """The same as angles: 2*pi times each, in double precision, rounded once."""
    return (units().double() * (2 * math.pi)).float()


@pytest.mark.slow
def test_the_logarithm_of_every_draw():
    """Every number that a normal draw takes the logarithm of has glibc's logarithm."""
    x = units().clamp(min=1e-7)
    assert same_bits(glibc.logf(x), library("logf", x))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "place"), [("sinf", 0), ("cosf", 1)])
def test_the_sine_and_cosine_of_every_draw(name, place):
    """Every angle of a normal draw has glibc's sine and cosine."""
    assert same_bits(glibc.sincosf(angles())[place], library(name, angles()))


@pytest.mark.parametrize("exponent", range(-32, 0))
def test_the_logarithm_of_each_octave(exponent):
    """The logarithm is glibc's in each octave down to 2**-32, its first and last number included."""
    x = torch.cat((torch.linspace(1, 2, 1000)[:-1], torch.tensor([2 - 2.0**-23]))) * 2.0**exponent
    assert same_bits(glibc.logf(x), library("logf", x))


@pytest.mark.parametrize(("name", "place"), [("sinf", 0), ("cosf", 1)])
def test_the_sine_and_cosine_of_large_angles(name, place):
    """Sine and cosine are glibc's up to 120, and next to the multiples of pi/4, where quarters meet."""
    edges = torch.arange(1, 153, dtype=torch.float64).mul(math.pi / 4).float()
    steps = torch.arange(-3, 4, dtype=torch.int32)
    near = (edges.view(torch.int32)[:, None] + steps).view(torch.float32).flatten()
    x = torch.cat((near, torch.linspace(0, 119.99, 100_001), torch.logspace(-38, 0, 10_001)))
    assert same_bits(glibc.sincosf(x)[place], library(name, x))


def test_the_library_is_no_plain_rounding():
    """glibc's logarithm is not the correctly rounded one, so the tests above tell the two apart."""
    x = units().clamp(min=1e-7)[::64]
    rounded = x.double().log().float()
    assert not same_bits(library("logf", x), rounded)
    assert not same_bits(glibc.logf(x), rounded)
