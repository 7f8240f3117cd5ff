"""The draws are those of Keras' JAX backend, to the bit."""

import atexit
import functools
import hashlib
import os
import subprocess
import sys

import pytest
import torch

from tests.support.backends import Backend, backend, same_bits
from tests.support.memory import PeakMemory
from torch_kinit import Normal, TruncatedNormal, Uniform
from torch_kinit.numerics import fma, threefry
from torch_kinit.streams import keras_jax

LAWS = {"uniform": Uniform, "normal": Normal, "truncated_normal": TruncatedNormal}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SEEDS = [0, 1, 12345, 2**31, 2**32 - 1]
# Bounds of a uniform law; mean and std of a normal one.
NUMBERS = {
    "uniform": [(0.0, 1.0), (-0.05, 0.05), (0.1, 0.7), (-1e-3, 3.3e-3), (-5.0, -1.7), (-1e-37, 1e-37)],
    "normal": [(0.0, 1.0), (0.0, 0.0371), (0.3, 0.05), (-2.0, 1.7), (1.5, 0.0), (0.0, 1e-36), (0.1, 1e-40)],
}
NUMBERS["truncated_normal"] = NUMBERS["normal"]
CASES = [(law, *numbers) for law, some in NUMBERS.items() for numbers in some]

# float16 as on a CPU that does its arithmetic in float32.
ENVIRONMENTS = {torch.float16: {"XLA_FLAGS": "--xla_cpu_max_isa=AVX2"}, torch.float64: {"JAX_ENABLE_X64": "1"}}

DRAWN = """
import jax
from keras.src.backend.jax import random

key = jax.numpy.array(key, "uint32")
result = getattr(random, law)((count,), *numbers, dtype=dtype, seed=key)
"""
# jax.random's own functions on each input there is: counters in place of random bits. They depend on the key, which is
# zero, lest the compiler compute all before it runs.
EXHAUSTED = """
import jax
from jax._src.random import core

real = core._random_bits
core._random_bits = lambda key, width, shape: jax.lax.iota("uint32", shape[0]) + jax.random.key_data(key)[0] << 9
jax.clear_caches()
try:
    bounds = dict(minval=numbers[0], maxval=numbers[1]) if law == "uniform" else {}
    bounds = dict(lower=-2.0, upper=2.0) if law == "truncated_normal" else bounds
    result = getattr(jax.random, law)(jax.random.key(0), shape=(1 << 23,), dtype="float32", **bounds)
finally:
    core._random_bits = real
    jax.clear_caches()
"""
INITIALIZED = """
import keras

result = getattr(keras.initializers, name)(*numbers, seed=seed)(shape, dtype="float32")
"""
DIGESTS = """
from torch_kinit.numerics import fma
from tests.streams.test_keras_jax import digests
assert not fma.is_fused()
print(*digests())
"""


@functools.cache
def jax_of(dtype):
    """JAX as the tests of this dtype need it."""
    if dtype not in ENVIRONMENTS:
        return backend("jax")
    process = Backend("jax", **ENVIRONMENTS[dtype])
    atexit.register(process.close)
    return process


def theirs(law, key, count, numbers, dtype):
    name = str(dtype).removeprefix("torch.")
    return jax_of(dtype)(DRAWN, law=law, key=key, count=count, numbers=numbers, dtype=name)


def ours(law, key, start, count, numbers, dtype=torch.float32):
    out = torch.full((count,), torch.nan, dtype=dtype)
    keras_jax.draw(out, key, start, LAWS[law](*numbers))
    return out


def digests():
    """What each law draws in each dtype, hashed."""
    for law, *numbers in CASES:
        for dtype in DTYPES:
            values = ours(law, (7, 0), 0, 9973, numbers, dtype)
            yield hashlib.sha256(bytes(values.view(torch.uint8).tolist())).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("law", "first", "second"), CASES)
def test_each_law(law, first, second, dtype):
    """Values of any bounds, mean and std are Keras', at as many values as try all that float16 and bfloat16 have."""
    for seed in SEEDS:
        drawn = theirs(law, (seed, 0), 20_011, (first, second), dtype)
        assert same_bits(ours(law, (seed, 0), 0, 20_011, (first, second), dtype), drawn)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("count", [0, 1, 3, 1023, 65537, 2**18 + 5])
def test_each_size(law, count, dtype):
    """Tensors of any size, and any key, hold Keras' values."""
    assert same_bits(ours(law, (9, 3), 0, count, (-0.3, 0.8), dtype), theirs(law, (9, 3), count, (-0.3, 0.8), dtype))


@pytest.mark.slow
@pytest.mark.parametrize(("law", "first", "second"), [case for case in CASES if max(map(abs, case[1:])) > 1e-30])
def test_float64(law, first, second):
    """float64 values are those of JAX with x64 on, to four units in the last place of the largest."""
    drawn = theirs(law, (11, 0), 2**17 + 1, (first, second), torch.float64)
    values = ours(law, (11, 0), 0, 2**17 + 1, (first, second), torch.float64)
    assert drawn.dtype == values.dtype == torch.float64
    largest = max(drawn.abs().max().item(), abs(second) * 4)
    assert (values - drawn).abs().max().item() <= 4 * torch.finfo(torch.float64).eps * largest
    if fma.is_fused():
        assert (values == drawn).double().mean().item() >= (1.0 if law == "uniform" else 0.999)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("law", "numbers"),
    [("uniform", (-0.1234, 0.1234)), ("uniform", (0.1, 0.7)), ("normal", (0.0, 1.0)), ("truncated_normal", (0.0, 1.0))],
    ids=str,
)
def test_every_input(law, numbers, monkeypatch):
    """A float32 draw has 2**23 possible inputs: each gives jax.random's value, with and without fused kernels."""

    def counters(self, start, x0, x1, scratch):
        torch.arange(start, start + x0.numel(), out=x0).bitwise_left_shift_(9)
        x1.zero_()

    drawn = backend("jax")(EXHAUSTED, law=law, numbers=numbers)
    assert bool((drawn[1:] >= drawn[:-1]).all())
    monkeypatch.setattr(threefry.Cipher, "encrypt", counters)
    assert same_bits(ours(law, (0, 0), 0, 1 << 23, numbers), drawn)
    monkeypatch.setattr(fma, "is_fused", lambda: False)
    assert same_bits(ours(law, (0, 0), 0, 1 << 23, numbers), drawn)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("start", "count"), [(1, 7), (131, 2**17 + 9), (2**17 - 1, 2), (2**18 + 1, 1001)])
def test_a_slice_equals_the_whole(law, start, count, dtype):
    """Values from any index on are those that the whole tensor has there."""
    whole = ours(law, (5, 0), 0, start + count, (-0.2, 0.9), dtype)
    assert same_bits(ours(law, (5, 0), start, count, (-0.2, 0.9), dtype), whole[start:])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "law", "numbers"),
    [
        ("RandomUniform", "uniform", (-0.05, 0.07)),
        ("RandomNormal", "normal", (0.2, 0.05)),
        ("TruncatedNormal", "truncated_normal", (-0.1, 0.3)),
    ],
)
@pytest.mark.parametrize("shape", [(), (5,), (0, 4), (3, 3, 7, 13)], ids=str)
def test_keras_initializers(name, law, numbers, shape):
    """An initializer's tensor, read row by row, is the draw of the key (its seed, 0)."""
    drawn = backend("jax")(INITIALIZED, name=name, numbers=numbers, seed=1337, shape=shape)
    assert drawn.shape == shape
    assert same_bits(ours(law, (1337, 0), 0, drawn.numel(), numbers), drawn.flatten())


def test_without_vector_kernels():
    """torch's plain kernels, which fuse nothing, draw the same values."""
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "default"}
    done = subprocess.run(
        [sys.executable, "-c", DIGESTS], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == list(digests())


@pytest.mark.parametrize("size", [1, 2, 5, 16, 33, 1000, 40_001])
@pytest.mark.parametrize("is_fused", [None, False], ids=["as it is", "by float64"])
def test_a_sum_is_rounded_once(size, is_fused, monkeypatch):
    """fma_ and polynomial give the float32 nearest to the exact a*b + c, which Python's fractions know."""
    from fractions import Fraction

    if is_fused is not None:
        monkeypatch.setattr(fma, "is_fused", lambda: is_fused)
    a, b, c = torch.randn(3, size)
    exact = [Fraction(x) * Fraction(y) + Fraction(z) for x, y, z in zip(*torch.stack((a, b, c)).tolist(), strict=True)]
    nearest = torch.tensor([float(value) for value in exact]).float()
    assert same_bits(fma.fma_(a.clone(), b, c), nearest)
    line = [Fraction(float(b[0])) * Fraction(x) + Fraction(float(c[0])) for x in a.tolist()]
    expected = torch.tensor([float(value) for value in line]).float()
    assert same_bits(fma.polynomial((float(b[0]), float(c[0])), a, torch.empty_like(a)), expected)


def test_square_roots_are_correctly_rounded():
    """sqrt_ gives the float32 nearest to the root, within half a unit by exact squares."""
    from fractions import Fraction

    x = torch.rand(5000) * 20
    roots = fma.sqrt_(x.clone())
    below, above = torch.nextafter(roots, torch.zeros(())), torch.nextafter(roots, torch.full((), torch.inf))
    for value, root, lower, upper in zip(*torch.stack((x, roots, below, above)).tolist(), strict=True):
        assert (Fraction(lower) + Fraction(root)) ** 2 <= 4 * Fraction(value) <= (Fraction(upper) + Fraction(root)) ** 2


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_memory_beside_the_tensor(dtype):
    """A piece takes less than 16 MiB of scratch memory."""
    for law in LAWS.values():
        out = torch.empty(keras_jax.chunk_of(dtype), dtype=dtype)
        with PeakMemory(out) as memory:
            keras_jax.draw(out, (3, 0), 0, law(0.0, 1.0))
        assert memory.peak < 16 << 20
