"""A law's moments, support, density and distribution function are SciPy's."""

import dataclasses
import math

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from torch_kinit import Constant, Normal, TruncatedNormal, Uniform
from torch_kinit.streams.laws import Entries

INF = math.inf
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SCIPY = {
    "uniform": (Uniform(-0.5, 2.0), scipy.stats.uniform(-0.5, 2.5)),
    "thirds": (Uniform(1 / 3, 2 / 3), scipy.stats.uniform(1 / 3, 1 / 3)),
    "normal": (Normal(0.7, 0.02), scipy.stats.norm(0.7, 0.02)),
    "standard normal": (Normal(0.0, 1.0), scipy.stats.norm()),
}
BOUNDS = [
    (-2, 2), (-1, 3), (-5, 0.1), (-0.5, 0.25), (0.5, 2), (1, 1.5), (1.001, 4), (2, 3), (-3, -2), (-40, 40), (0, INF),
    (1, INF), (-INF, 1), (-1, INF), (3, INF), (-INF, -3), (8, INF), (-INF, -8), (-INF, -5), (8, 8.5), (-INF, INF),
]  # fmt: skip


def truncated(lower, upper, mean=0.3, std=0.05):
    return TruncatedNormal(mean, std, lower, upper), scipy.stats.truncnorm(lower, upper, loc=mean, scale=std)


SCIPY |= {f"{lower} to {upper}": truncated(lower, upper) for lower, upper in BOUNDS}
every_law = pytest.mark.parametrize(("law", "oracle"), SCIPY.values(), ids=SCIPY)
every_bounds = pytest.mark.parametrize(("lower", "upper"), BOUNDS, ids=str)


# --- against SciPy ---------------------------------------------------------------------------------------------------


@every_law
def test_moments_and_bounds_are_scipys(law, oracle):
    """Mean, std and bounds are SciPy's, whatever the law."""
    assert (law.mean, law.std) == pytest.approx((oracle.mean(), oracle.std()), rel=1e-9)
    assert law.bounds == pytest.approx(oracle.support(), rel=1e-12)


def quantiles(oracle):
    """Values from one end of a law to the other, and some beyond."""
    x = np.concatenate([oracle.ppf([1e-9, 1e-6, *np.linspace(0.001, 0.999, 501)]), oracle.isf([1e-3, 1e-6, 1e-9])])
    return torch.from_numpy(np.sort(np.concatenate([x, oracle.mean() + oracle.std() * np.array([-50.0, 50.0])])))


@every_law
def test_density_and_distribution_are_scipys(law, oracle):
    """In float64 pdf and cdf are SciPy's at every quantile."""
    x = quantiles(oracle)
    wide = x.numpy()
    assert law.pdf(x).dtype == law.cdf(x).dtype == torch.float64
    inside = (wide > law.bounds[0]) & (wide < law.bounds[1])  # of bounds that differ in the last bit
    np.testing.assert_allclose(law.pdf(x).numpy()[inside], oracle.pdf(wide)[inside], rtol=2e-12, atol=0)
    np.testing.assert_allclose(law.cdf(x).numpy(), oracle.cdf(wide), rtol=2e-12, atol=2e-13)


STANDARD = [(Uniform(-1.0, 1.0), scipy.stats.uniform(-1, 2)), (Normal(0.0, 1.0), scipy.stats.norm())]
STANDARD += [truncated(lower, upper, 0.0, 1.0) for lower, upper in BOUNDS]


@pytest.mark.parametrize(("law", "oracle"), STANDARD, ids=lambda x: str(x) if dataclasses.is_dataclass(x) else "")
def test_float32_is_as_near_as_it_can_be(law, oracle):
    """In float32 pdf is within 16 units of rounding of SciPy's at the same number, and cdf, at most 1, within 8."""
    x, eps = quantiles(oracle).float(), torch.finfo(torch.float32).eps
    low, high = law.support(torch.float32)
    x = x[(x >= low) & (x <= high)]
    wide = x.double().numpy()
    assert law.pdf(x).dtype == law.cdf(x).dtype == torch.float32
    assert len(x) > 480
    normal = torch.finfo(torch.float32).smallest_normal
    np.testing.assert_allclose(law.pdf(x).double().numpy(), oracle.pdf(wide), rtol=16 * eps, atol=normal)
    np.testing.assert_allclose(law.cdf(x).double().numpy(), oracle.cdf(wide), rtol=0, atol=8 * eps)


@every_law
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_rounded_once(law, oracle, dtype):
    """In half precision pdf and cdf are the float32 ones of the same numbers, rounded."""
    x = quantiles(oracle).to(dtype)
    assert torch.equal(law.pdf(x), law.pdf(x.float()).to(dtype))
    assert torch.equal(law.cdf(x), law.cdf(x.float()).to(dtype))


@every_law
def test_a_number_in_gives_a_number(law, oracle):
    """A float gives the float that a float64 tensor holds, whatever torch's default dtype and device."""
    x = float(oracle.ppf(0.3))
    with torch.device("meta"):
        found = law.pdf(x), law.cdf(x)
    assert [type(value) for value in found] == [float, float]
    assert found == tuple(float(f(torch.tensor(x, dtype=torch.float64))) for f in (law.pdf, law.cdf))
    assert law.cdf(-INF) == 0
    assert law.cdf(INF) == 1
    assert law.pdf(INF) == law.pdf(-INF) == 0


@every_law
def test_support_is_where_the_density_is(law, oracle):
    """A dtype's support has numbers of it within the bounds, the nearest, and there is density at both ends."""
    for dtype in DTYPES:
        low, high = law.support(dtype)
        ends = torch.tensor([low, high], dtype=dtype)
        assert ends.tolist() == [low, high]
        beyond = torch.nextafter(ends, torch.tensor([-INF, INF], dtype=dtype)).tolist()
        assert beyond[0] < law.bounds[0] <= low < high <= law.bounds[1] < beyond[1] or not math.isfinite(
            sum(law.bounds)
        )
        if oracle.pdf(oracle.support()).min() > 1e-6:
            assert bool((law.pdf(ends) > 0).all())


def test_there_is_nothing_outside_the_bounds():
    """From its bounds on a law has no density, and its cdf is exactly 0 and 1."""
    for law in [Uniform(-0.1, 0.3), *(truncated(lower, upper)[0] for lower, upper in BOUNDS)]:
        low, high = law.bounds
        assert (law.cdf(low), law.cdf(high)) == (0, 1)
        assert (law.pdf(low - 1e-9), law.pdf(high + 1e-9)) == (0, 0)
        for dtype in DTYPES:
            x = torch.tensor([-9.0, 9.0], dtype=dtype)
            if math.isfinite(low) and math.isfinite(high):
                assert law.cdf(x).tolist() == [0, 1]
                assert law.pdf(x).tolist() == [0, 0]


def by_quadrature(lower, upper):
    """Mean and std of N(0, 1) between two bounds of which one is 0 or more in a tail, by adaptive quadrature.

    In distances from the lower bound: there the density's values neither underflow nor cancel, as SciPy's truncnorm's
    do, whose std of [20, 20.0001] or of [1000, inf) is NaN.
    """
    width = min(upper - lower, 100 / max(lower, 1))  # where the density has fallen by e**-100

    def integral(f):
        def weighted(d):
            return f(d) * math.exp(-d * (lower + d / 2))

        return scipy.integrate.quad(weighted, 0, width, epsabs=0, epsrel=1e-11)[0]

    total = integral(lambda d: 1.0)
    mean = integral(lambda d: d) / total
    return lower + mean, math.sqrt(integral(lambda d: (d - mean) ** 2) / total)


@pytest.mark.parametrize(
    ("lower", "upper"),
    [(0, INF), (8, INF), (20, INF), (38, 39), (100, INF), (1e3, INF), (1e4, INF), (1e6, INF),
     (3, 3.001), (3, 3 + 1e-6), (20, 20.0001), (0.5, 0.5001), (0.5, 0.5 + 1e-8), (0, 1e-8)],
)  # fmt: skip
@pytest.mark.parametrize("sign", [1, -1], ids=["upper", "lower"])
def test_far_tails_and_narrow_intervals_have_exact_moments(lower, upper, sign):
    """Far in a tail, or between bounds a hair apart, mean and std still have the four digits that a plan prints."""
    mean, std = by_quadrature(lower, upper)
    got = TruncatedNormal(0.0, 1.0, *sorted((sign * lower, sign * upper)))
    assert got.std == pytest.approx(std, rel=1e-4)
    assert sign * got.mean - lower == pytest.approx(mean - lower, rel=1e-4, abs=4 * math.ulp(lower))


@given(st.floats(-50, 50), st.floats(1e-16, 20), st.floats(-10, 10), st.floats(1e-3, 10))
@settings(deadline=None)
def test_the_moments_of_a_truncated_normal_are_possible(lower, width, mean, std):
    """The mean lies between the bounds, the std is at most half their distance (Popoviciu), and mirrors mirror."""
    upper = lower + width
    assume(lower < upper)
    got = TruncatedNormal(mean, std, lower, upper)
    slack = 8 * math.ulp(abs(mean) + std * max(abs(lower), abs(upper)))
    low, high = got.bounds
    assert low - slack <= got.mean <= high + slack
    assert 0 < got.std <= (high - low) / 2 + slack
    mirrored = TruncatedNormal(-mean, std, -upper, -lower)
    assert (mirrored.mean, mirrored.std) == pytest.approx((-got.mean, got.std))
    assert mirrored.bounds == pytest.approx((-high, -low))


FAR = [(20, 20.5), (37, INF), (38, 39), (100, INF), (1e3, INF), (3, 3.001), (0.5, 0.5001), (0, 1e-6)]


@pytest.mark.parametrize(("lower", "upper"), FAR, ids=str)
@pytest.mark.parametrize("sign", [1, -1], ids=["upper", "lower"])
def test_far_tails_and_narrow_intervals_have_their_distribution(lower, upper, sign):
    """Where SciPy's density underflows or cancels, pdf and cdf are those of adaptive quadrature."""
    law = TruncatedNormal(0.0, 1.0, *sorted((sign * lower, sign * upper)))
    width = min(upper - lower, 30 / max(lower, 1))
    x = lower + width * torch.linspace(0, 1, 21, dtype=torch.float64)

    def below(d):
        return scipy.integrate.quad(lambda t: math.exp(-t * (lower + t / 2)), 0, d, epsabs=0, epsrel=1e-13)[0]

    distances = [value - lower for value in x.tolist()]
    total = below(width)
    density = [math.exp(-d * (lower + d / 2)) / total for d in distances]
    share = [below(d) / total for d in distances]
    assert law.pdf(sign * x).tolist() == pytest.approx(density, rel=1e-10)
    found = law.cdf(sign * x)
    assert (found if sign > 0 else 1 - found).tolist() == pytest.approx(share, rel=1e-9, abs=1e-9)


# --- constants, no spread ----------------------------------------------------------------------------------


POINTS = {
    "constant": Constant(0.1),
    "normal": Normal(0.1, 0.0),
    "truncated": TruncatedNormal(0.1, 0.0, 1.0, 2.0),
    "one-sided": TruncatedNormal(0.1, 0.0, 1.0, INF),
}


@pytest.mark.parametrize("law", POINTS.values(), ids=POINTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_law_of_one_value(law, dtype):
    """Without spread, all probability lies at the mean, as a tensor of the dtype has it."""
    assert (law.mean, law.std, law.bounds) == (0.1, 0.0, (0.1, 0.1))
    x = torch.tensor([0.0, 0.1, 0.2], dtype=dtype)
    assert law.cdf(x).tolist() == [0, 1, 1]
    assert law.pdf(x).tolist() == [0, INF, 0]
    assert law.cdf(x).dtype == law.pdf(x).dtype == dtype
    assert (law.cdf(0.05), law.cdf(0.1), law.pdf(0.1)) == (0, 1, INF)
    assert law.support(dtype) == (float(x[1]), float(x[1]))


@pytest.mark.parametrize("value", [0.1, -0.1, 1 / 3, 1e-6, 6e-8, 65504.0, 1.0009765, 0.0])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_a_constant_is_rounded_as_its_dtype_rounds(value, dtype):
    """The support of a constant is the number that a tensor filled with it holds."""
    if value > torch.finfo(dtype).max:
        with pytest.raises(ValueError, match=r"`value` 65504\.0 does not fit in torch\.float8"):
            Constant(value).support(dtype)
        return
    held = float(torch.tensor(value, dtype=torch.float64).to(dtype))
    assert Constant(value).support(dtype) == (held, held)


def test_the_values_of_an_array_have_no_distribution():
    """Of values that are given one by one there are moments, and no density."""
    law = Entries(0.5, 0.25, 0.0, 1.0)
    assert (law.mean, law.std, law.bounds) == (0.5, 0.25, (0.0, 1.0))
    for function in (law.pdf, law.cdf):
        with pytest.raises(ValueError, match="no density: its values are given one by one"):
            function(0.5)
