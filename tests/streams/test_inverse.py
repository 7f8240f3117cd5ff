"""Truncated normals far from the middle: exact quantiles, kept bounds, and no outlier at the ends of the uniforms."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

import torch_kinit as kinit


@pytest.mark.parametrize(("lower", "upper"), [(1.0, math.inf), (1.5, 4.0), (8.0, math.inf), (-3.0, -1.2)])
def test_a_tail_value_is_the_quantile_of_one_uniform(lower, upper):
    """Far from the middle too, each value is SciPy's quantile of one of the seed's uniforms, to 1e-9."""
    got = kinit.trunc_normal_(
        torch.empty(1000, dtype=torch.float64),
        std=1.0,
        lower=lower,
        upper=upper,
        generator=torch.Generator().manual_seed(7),
    )
    sign = -1.0 if lower + upper < 0 else 1.0
    low, high = sorted((sign * lower, sign * upper))
    share = scipy.stats.norm.sf(low) - scipy.stats.norm.sf(high)
    uniforms = torch.empty(1000, dtype=torch.float64).uniform_(
        0, share / scipy.stats.norm.sf(low), generator=torch.Generator().manual_seed(7)
    )
    want = scipy.stats.norm.isf(scipy.stats.norm.sf(low) * (1 - uniforms.numpy()))
    np.testing.assert_allclose(sign * got.numpy(), want, rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("lower", "upper"), [(3.003, 3.1), (-8.2, -8.1), (1.001, math.inf)])
def test_a_tail_is_not_rounded_out_of_its_bounds(dtype, lower, upper):
    """A tail whose bounds the dtype does not have stays inside them."""
    values = kinit.trunc_normal_(torch.empty(1 << 16, dtype=dtype), std=1.0, lower=lower, upper=upper).double()
    assert lower <= float(values.min())
    assert float(values.max()) <= upper


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("end", ["first", "last"])
@pytest.mark.parametrize(("lower", "upper"), [(-math.inf, 0.5), (-0.5, math.inf), (8.0, math.inf)])
def test_the_ends_of_the_uniforms_give_no_outlier(monkeypatch, dtype, end, lower, upper):
    """The least and greatest uniform there can be, drawn once in 2**24, do not become infinite or a stray value."""

    def ends(self, low, high, *, generator=None):
        return self.fill_(low if end == "first" else high)

    monkeypatch.setattr(torch.Tensor, "uniform_", ends)
    value = float(kinit.trunc_normal_(torch.empty(1, dtype=dtype), std=1.0, lower=lower, upper=upper))
    assert abs(value) < 12  # P(|x| > 12 | x > 8) < 1e-17
