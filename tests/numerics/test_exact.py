"""Functions of exactly rounded operations are near the true ones, and take no more memory than they say."""

import math

import numpy as np
import pytest
import scipy.special
import torch

from torch_kinit.numerics.exact import BUFFERS, Scratch, functions

DTYPES = [torch.float32, torch.float64]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def exact(x):
    return functions(Scratch(BUFFERS, x.numel(), x.dtype))


def relative_error(found, expected):
    """The greatest relative error, in units of the dtype's epsilon."""
    error = np.abs(found.double().numpy() - expected) / np.maximum(np.abs(expected), 1e-300)
    return float(error.max()) / torch.finfo(found.dtype).eps


def uniforms(low, high, dtype, count=1 << 18):
    x = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * (high - low) + low
    x[:2] = torch.tensor([low, high], dtype=torch.float64)
    return x.to(dtype)


@every_dtype
@pytest.mark.parametrize("largest", [0.5, 0.9545, 0.9966, 0.99999, None], ids=str)
def test_erfinv(dtype, largest):
    """The inverse error function is within four units of rounding of SciPy's, in the centre and in the tails."""
    largest = 1 - torch.finfo(dtype).eps / 2 if largest is None else largest
    x = uniforms(-largest, largest, dtype)
    x[2:1002] = torch.linspace(-1e-4, 1e-4, 1000)
    expected = scipy.special.erfinv(x.double().numpy())
    assert relative_error(exact(x).erfinv_(x, largest), expected) < 4


@every_dtype
def test_erfinv_near_one(dtype):
    """The last numbers before one, where the inverse error function is steepest, are no worse."""
    x = 1 - torch.finfo(dtype).eps / 2 * torch.arange(1, 4097, dtype=dtype)
    expected = scipy.special.erfinv(x.double().numpy())
    assert relative_error(exact(x).erfinv_(x, float(x[0])), expected) < 4


@every_dtype
def test_log(dtype):
    """The logarithm is within an epsilon of its larger term, and exact at one."""
    x = torch.cat((uniforms(1e-3, 1, dtype), torch.logspace(-30, 30, 10001, dtype=torch.float64).to(dtype)))
    expected = np.log(x.double().numpy().astype(np.longdouble)).astype(np.float64)
    error = np.abs(exact(x).log_(x).double().numpy() - expected) / np.maximum(np.abs(expected), 0.5)
    assert error.max() < 2 * torch.finfo(dtype).eps
    assert exact(x).log_(torch.ones(3, dtype=dtype)).tolist() == [0, 0, 0]


@every_dtype
def test_log1p(dtype):
    """log1p_ is the logarithm of 1 + x, as near as the rounding of that sum lets it be."""
    x = uniforms(-0.999, 2, dtype)
    wide = x.double().numpy().copy()
    error = np.abs(exact(x).log1p_(x).double().numpy() - np.log1p(wide)) * np.minimum(1 + wide, 1)
    assert error.max() < 2 * torch.finfo(dtype).eps


@every_dtype
def test_erfcx(dtype):
    """The scaled complementary error function is within eight units of rounding of SciPy's, however far out."""
    x = torch.logspace(math.log10(0.5), 8, 1 << 17, dtype=torch.float64).to(dtype)
    x[:3] = torch.tensor([4 - 1e-6, 4, 4 + 1e-6])
    expected = scipy.special.erfcx(x.double().numpy())
    assert relative_error(exact(x).erfcx_(x), expected) < 8


@every_dtype
def test_sqrt(dtype):
    """The square root is NumPy's in float32, and within two units of rounding in float64."""
    x = uniforms(1e-3, 40, dtype)
    expected = np.sqrt(x.numpy())
    found = exact(x).sqrt_(x)
    assert relative_error(found, expected.astype(np.float64)) <= (0 if dtype == torch.float32 else 2)


@every_dtype
def test_all_buffers_come_back(dtype):
    """The functions take the buffers they say they need, and give each back."""
    scratch = Scratch(BUFFERS, 8, dtype)
    maths = functions(scratch)
    for _ in range(3):
        for draw in (maths.log_, maths.log1p_, maths.sqrt_, maths.erfcx_, lambda x: maths.erfinv_(x, 0.999999)):
            draw(torch.full((8,), 0.75, dtype=dtype))
        taken = [scratch.take(8) for _ in range(BUFFERS)]
        assert len({buffer.data_ptr() for buffer in taken}) == BUFFERS
        scratch.give(*taken)
