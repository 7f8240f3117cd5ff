"""The uniform, normal and truncated normal values are those of Keras on TensorFlow, to the bit.

The oracle is keras.random and keras.initializers with TensorFlow's CPU kernels, which call the C library: float32,
float16 and bfloat16 normals have the same bits where that is glibc.
"""

import platform

import pytest
import torch

from tests.support.backends import backend, same_bits
from tests.support.memory import PeakMemory
from torch_kinit import KerasSeed, Normal, TruncatedNormal, Uniform
from torch_kinit.streams import keras_tensorflow
from torch_kinit.streams.pieces import CHUNK

LAWS = {"uniform": Uniform, "normal": Normal, "truncated_normal": TruncatedNormal}
DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}
SEEDS = [0, 7, -1, -(2**63), 2**31 - 2, 2**31 - 1, 2**31, 2**40 + 7, 2**63 - 1]
SIZES = [0, 1, 2, 3, 5, 17, 4099, 65_537, CHUNK + 7]
# Bounds, or mean and standard deviation. Some lie between numbers of the dtypes, at and beside halfway; "small" gives
# subnormal values of float16.
PARAMETERS = {
    "standard": (0.0, 1.0),
    "thirds": (-0.1234, 1 / 3),
    "halfway in float16": (1 + 2**-11, 1 + 2**-11 + 2**-40),
    "halfway in bfloat16": (-1 - 2**-8, 3 + 2**-7 + 2**-40),
    "halfway in float32": (1 + 2**-24 + 2**-50, 7 + 2**-22),
    "small": (-1e-5, 2e-5),
    "large": (-20_000.0, 10_000.0),
    "no spread": (0.25, 0.0),
    "narrow": (1.0, 1.0009765625),
}
LAWS_OF_PARAMETERS = {
    f"{name}, {law}": (law, (a, b)) for name, (a, b) in PARAMETERS.items() for law in LAWS if law != "uniform" or a < b
}
KERAS = "import keras; result = getattr(keras.random, law)(shape, a, b, dtype=dtype, seed=seed)"

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="TensorFlow's C library is not glibc.")


def drawn(law, dtype, count, seed, a, b, start=0):
    out = torch.full((count,), torch.nan, dtype=DTYPES[dtype])
    keras_tensorflow.draw(out, seed, start, LAWS[law](a, b))
    return out


def keras(law, dtype, count, seed, a, b):
    return backend("tensorflow")(KERAS, law=law, shape=(count,), a=a, b=b, dtype=dtype, seed=seed)


def check(law, dtype, count, seed, a, b):
    """The same bits; or, for float64 normals, whose logarithm and sine are torch's, 98 % of them, all within 1e-15."""
    ours, theirs = drawn(law, dtype, count, seed, a, b), keras(law, dtype, count, seed, a, b)
    if dtype != "float64" or law == "uniform":
        assert same_bits(ours, theirs)
        return
    assert ours.dtype == theirs.dtype
    torch.testing.assert_close((ours - a), (theirs - a), rtol=0, atol=1e-15 * (abs(a) + 5 * b))
    different = (ours != theirs).sum().item()
    assert different <= 0.02 * count + 4


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("seed", SEEDS)
def test_seeds(law, dtype, seed):
    """Every integer of 64 bits is a seed."""
    check(law, dtype, 1003, seed, -0.05, 0.07)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("size", SIZES)
def test_sizes(law, dtype, size):
    """A draw of any size is Keras', whole groups or not."""
    check(law, dtype, size, 42, 0.0, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("law", "parameters"), LAWS_OF_PARAMETERS.values(), ids=LAWS_OF_PARAMETERS)
def test_parameters(law, dtype, parameters):
    """Bounds, mean and standard deviation are rounded, multiplied and added as TensorFlow does."""
    check(law, dtype, 5001, 1, *parameters)


@pytest.mark.slow
@pytest.mark.parametrize(("law", "seed"), [("uniform", 5), ("normal", 6), ("truncated_normal", 7)])
def test_millions_of_values(law, seed):
    """Three million values, drawn piece by piece, are those of one call of Keras."""
    out = torch.empty(3_000_001)
    KerasSeed(seed, "tensorflow").draw(out, LAWS[law](0.5, 2.0))
    assert same_bits(out, keras(law, "float32", 3_000_001, seed, 0.5, 2.0))


@pytest.mark.slow
def test_truncation_needs_many_passes():
    """Some groups of two accept fewer than two of their first six candidates, and take a fourth call."""
    made = []
    original = keras_tensorflow.philox.words

    def counted(source, calls):
        made.append(calls.numel())
        return original(source, calls)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras_tensorflow.philox, "words", counted)
        values = drawn("truncated_normal", "float64", 1_000_000, 11, 0.0, 1.0)
    passes = [calls for calls in made if calls < max(made)]  # each pass ends with what a block has left
    assert len(passes) >= 4
    expected = keras("truncated_normal", "float64", 1_000_000, 11, 0.0, 1.0)
    assert (values - expected).abs().max() < 1e-14


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("start", "count"), [(1, 1), (2, 3), (3, 2), (3, 4096), (4097, 999), (70_001, 65_537)])
def test_slices(law, dtype, start, count):
    """Values from any index on are those of the whole, whatever the groups they stand in."""
    whole = drawn(law, dtype, 140_000, 9, 0.1, 0.2)
    assert same_bits(drawn(law, dtype, count, 9, 0.1, 0.2, start), whole[start : start + count])


@pytest.mark.parametrize("law", LAWS)
def test_far_indices(law):
    """A slice beyond 2**34 values, where the calls' numbers pass 32 bits, continues the one before."""
    start = 2**34 - 10
    both = drawn(law, "float32", 20, 9, 0.1, 0.2, start)
    halves = [drawn(law, "float32", 10, 9, 0.1, 0.2, at) for at in (start, start + 10)]
    assert same_bits(both, torch.cat(halves))
    assert not same_bits(halves[1], drawn(law, "float32", 10, 9, 0.1, 0.2, 0))


INITIALIZERS = {
    "RandomUniform(-0.3, 0.1, seed=3)": ("uniform", -0.3, 0.1),
    "RandomNormal(0.1, 0.3, seed=3)": ("normal", 0.1, 0.3),
    "TruncatedNormal(0.1, 0.3, seed=3)": ("truncated_normal", 0.1, 0.3),
    "GlorotUniform(seed=3)": ("uniform", -((6 / 200) ** 0.5), (6 / 200) ** 0.5),
    "HeNormal(seed=3)": ("truncated_normal", 0.0, (2 / 123) ** 0.5 / 0.87962566103423978),
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "law"), INITIALIZERS.items(), ids=INITIALIZERS)
def test_initializers(name, law):
    """Keras' initializers lay the same values out in row-major order."""
    code = f"import keras; result = keras.initializers.{name}((123, 77))"
    law, a, b = law
    assert same_bits(drawn(law, "float32", 123 * 77, 3, a, b).view(123, 77), backend("tensorflow")(code))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("law", LAWS)
def test_scratch_memory(law, dtype):
    """A piece takes at most 8 MiB beside the tensor it fills."""
    out = torch.empty(keras_tensorflow.chunk_of(Normal(0.0, 1.0)), dtype=DTYPES[dtype])
    with PeakMemory(out) as memory:
        keras_tensorflow.draw(out, 1, 3, LAWS[law](0.0, 1.0))
    assert memory.peak <= 8 * 2**20


def test_the_default_dtype_and_device_do_not_matter():
    """Values do not depend on torch's default dtype and device."""
    expected = {law: drawn(law, "float32", 1000, 4, 0.0, 1.0) for law in LAWS}
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            for law, values in expected.items():
                out = torch.empty(1000, dtype=torch.float32, device="cpu")
                keras_tensorflow.draw(out, 4, 0, LAWS[law](0.0, 1.0))
                assert same_bits(out, values)
    finally:
        torch.set_default_dtype(torch.float32)
