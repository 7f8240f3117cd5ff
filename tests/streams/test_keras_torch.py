"""The draws of Keras on torch, made piece by piece, are those that Keras makes at once.

The oracle is keras.random on this process' own torch.
"""

import keras
import pytest
import torch

import torch_kinit as kinit
from tests.support.backends import same_bits
from torch_kinit import KerasSeed, Normal, TruncatedNormal, Uniform
from torch_kinit.streams import keras_torch
from torch_kinit.streams.pieces import fill_flat

CHUNK = keras_torch.CHUNK
pytestmark = pytest.mark.usefixtures("_keras_on_cpu", "_one_thread")

LAWS = {
    "uniform": (Uniform, keras.random.uniform),
    "normal": (Normal, keras.random.normal),
    "truncated_normal": (TruncatedNormal, keras.random.truncated_normal),
}
DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}
every_law = pytest.mark.parametrize("law", LAWS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def drawn(law, tensor, seed, a, b, chunk=CHUNK):
    generator = torch.Generator().manual_seed(seed)
    return fill_flat(
        tensor, lambda out, start: keras_torch.draw(out, generator, LAWS[law][0](a, b)), chunk, divisible=False
    )


def check(law, dtype, shape, seed=3, a=-0.3, b=0.7, chunk=CHUNK):
    expected = LAWS[law][1](shape, a, b, dtype=dtype, seed=seed).detach()
    assert same_bits(drawn(law, torch.empty(shape, dtype=DTYPES[dtype]), seed, a, b, chunk), expected)


@every_law
@every_dtype
@pytest.mark.parametrize("chunk", [16, 48, 64])
def test_small_chunks(law, dtype, chunk):
    """Into however many pieces a tensor is cut, each a multiple of 16, and whatever the last one, nothing changes."""
    for count in (*range(0, 35), *range(chunk - 2, chunk + 19), *range(4 * chunk - 2, 4 * chunk + 19)):
        check(law, dtype, (count,), chunk=chunk)


@every_law
@pytest.mark.parametrize("more", [-1, 0, 1, 15, 16, 17, CHUNK + 5])
def test_the_usual_chunk(law, more):
    """Tensors around one and two chunks of the usual size are Keras'."""
    check(law, "float32", (CHUNK + more,))


@every_law
def test_short_pieces_are_other_values(law):
    """A last piece of fewer than 16 normal values would not be Keras': torch makes them in groups of 16."""
    generator = torch.Generator().manual_seed(3)
    expected = LAWS[law][1]((24,), 0.0, 1.0, dtype="float32", seed=3).detach()
    out = torch.empty(24)
    for piece in (out[:16], out[16:]):
        keras_torch.draw(piece, generator, LAWS[law][0](0.0, 1.0))
    assert same_bits(out, expected) == (law != "normal")


@every_law
@every_dtype
@pytest.mark.parametrize(
    ("a", "b"), [(0.0, 1.0), (-0.1234, 1 / 3), (1.0, 1 + 2**-9), (-1e-5, 2e-5), (0.25, 0.5)], ids=str
)
def test_numbers(law, dtype, a, b):
    """Bounds, mean and standard deviation are rounded, multiplied and added as Keras does."""
    check(law, dtype, (501,), a=a, b=b)


@pytest.mark.parametrize("law", ["normal", "truncated_normal"])
def test_zero_spread(law):
    """A law without spread gives its one value."""
    check(law, "float32", (70,), a=0.3, b=0.0)


@every_law
@pytest.mark.parametrize("shape", [(), (1,), (3, 0), (2, 3, 5), (7, 1, 3, 2, 2)], ids=str)
def test_shapes(law, shape):
    """Keras lays the values out in row-major order, four candidates side by side for a truncated one."""
    check(law, "float32", shape)
    check(law, "bfloat16", shape, chunk=16)


@every_law
@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1, -1, -(2**40), 2**32, 2**63 + 5, 10**30])
def test_seeds(law, seed):
    """Every integer is a seed; Keras takes it modulo 2**32."""
    expected = LAWS[law][1]((50,), -0.3, 0.7, dtype="float32", seed=seed).detach()
    assert same_bits(drawn(law, torch.empty(50), KerasSeed(seed, "torch").native_seed, -0.3, 0.7), expected)


def test_the_leak_is_reproduced():
    """Where none of four candidates lies inside, 4 times in a million, the first is taken as it is, as Keras does."""
    seed, shape = 9, (256, 64)  # one of these 2**14 values is 2.2673
    check("truncated_normal", "float32", shape, seed, 0.0, 1.0)
    values = kinit.trunc_normal_(torch.empty(shape), 0.0, 1.0, generator=KerasSeed(seed, "torch"))
    assert [round(value, 4) for value in values[values.abs() >= 2].tolist()] == [2.2673]
