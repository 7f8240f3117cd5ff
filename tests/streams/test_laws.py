"""The moments of a law are those of SciPy's law, and of what Keras draws."""

import functools
import math

import keras
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from keras.src.initializers.random_initializers import compute_fans

import torch_kinit as kinit
from torch_kinit.initializers.moments import moments
from torch_kinit.initializers.names import recipe

K = keras.initializers
INF = math.inf
partial = functools.partial


def law(initializer, shape=(3, 5), fans=None):
    """The moments of an initializer's values in a variable of this Keras-layout shape."""
    return moments(recipe(initializer), shape, fans)


# --- laws of given numbers -------------------------------------------------------------------------------------------


def truncated(lower, upper, mean=0.0, std=1.0):
    return law(partial(kinit.trunc_normal_, mean=mean, std=std, lower=lower, upper=upper))


@pytest.mark.parametrize(
    ("lower", "upper"),
    [(-2, 2), (-1, 3), (-5, 0.1), (-0.5, 0.25), (0.5, 2), (1, 1.5), (1.001, 4), (2, 3), (-3, -2), (-40, 40),
     (0, INF), (1, INF), (-INF, 1), (-1, INF), (3, INF), (-INF, -3), (8, INF), (-INF, -8), (8, 8.5), (-INF, INF)],
)  # fmt: skip
def test_a_truncated_normal_has_scipys_moments(lower, upper):
    """Mean, std and support of a truncated normal are SciPy's, whatever the bounds, mean and std."""
    expected = scipy.stats.truncnorm(lower, upper, loc=0.3, scale=0.05)
    got = truncated(lower, upper, 0.3, 0.05)
    assert got[:2] == pytest.approx((expected.mean(), expected.std()), rel=1e-9)
    assert got[2:] == pytest.approx(expected.support(), rel=1e-12)


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
    got = truncated(*sorted((sign * lower, sign * upper)))
    assert got.std == pytest.approx(std, rel=1e-4)
    assert sign * got.mean - lower == pytest.approx(mean - lower, rel=1e-4, abs=4 * math.ulp(lower))


@given(st.floats(-50, 50), st.floats(1e-16, 20), st.floats(-10, 10), st.floats(1e-3, 10))
@settings(deadline=None)
def test_the_moments_of_a_truncated_normal_are_possible(lower, width, mean, std):
    """The mean lies between the bounds, the std is at most half their distance (Popoviciu), and mirrors mirror."""
    upper = lower + width
    assume(lower < upper)
    got = truncated(lower, upper, mean, std)
    slack = 8 * math.ulp(abs(mean) + std * max(abs(lower), abs(upper)))
    assert got.low - slack <= got.mean <= got.high + slack
    assert 0 < got.std <= (got.high - got.low) / 2 + slack
    assert truncated(-upper, -lower, -mean, std) == pytest.approx((-got.mean, got.std, -got.high, -got.low))


def test_uniform_and_normal_have_scipys_moments():
    """Mean, std and support of the plain uniform and normal laws are SciPy's; their defaults are Keras'."""
    uniform = scipy.stats.uniform(loc=-0.5, scale=2.5)
    got = law(partial(kinit.random_uniform_, low=-0.5, high=2.0))
    assert got == pytest.approx((uniform.mean(), uniform.std(), *uniform.support()))
    normal = scipy.stats.norm(loc=0.7, scale=0.02)
    assert law(partial(kinit.random_normal_, mean=0.7, std=0.02)) == (normal.mean(), normal.std(), *normal.support())
    assert law("random_normal").std == K.RandomNormal().stddev
    assert law("random_uniform")[2:] == (K.RandomUniform().minval, K.RandomUniform().maxval)
    assert law("truncated_normal").high == 2 * K.TruncatedNormal().stddev


@pytest.mark.parametrize("function", [kinit.random_normal_, kinit.trunc_normal_], ids=lambda f: f.__name__)
def test_without_spread_all_values_are_the_mean(function):
    """With std 0, mean, least and greatest are one number, which the initializer draws."""
    initializer = partial(function, mean=0.25, std=0.0)
    assert initializer(torch.empty(3)).tolist() == [0.25] * 3
    assert law(initializer) == (0.25, 0.0, 0.25, 0.25)


# --- scaled laws, against what Keras draws ---------------------------------------------------------------------------

KERNEL = (4, 4, 64, 512)  # 2**19 values, rectangular: all three modes differ
RELATIVE_ERROR = {"truncated_normal": 0.584, "untruncated_normal": 0.707, "uniform": 0.447}  # of a std, times sqrt(n)


def check_against_draw(got, values, distribution):
    """Compare a law with 2**19 values by six standard errors, and its bounds with their extremes."""
    x = values.double().flatten().numpy()
    assert got.mean == 0
    assert abs(x.mean()) <= 6 * got.std / math.sqrt(x.size)
    assert abs(x.std() / got.std - 1) <= 6 * RELATIVE_ERROR[distribution] / math.sqrt(x.size)
    assert got.low == -got.high
    if distribution == "untruncated_normal":
        assert got.high == INF
    else:  # Keras' torch backend lets a few in a million out of a truncated normal's bounds
        assert np.mean(np.abs(x) > got.high * (1 + 1e-6)) < 3e-5
        assert np.quantile(np.abs(x), 0.9999) == pytest.approx(got.high, rel=2e-3)


@pytest.mark.parametrize("distribution", RELATIVE_ERROR)
@pytest.mark.parametrize("mode", ["fan_in", "fan_out", "fan_avg"])
def test_variance_scaling_has_the_moments_of_keras_draws(mode, distribution):
    """Std and bounds of every mode and distribution are those of half a million values that Keras draws."""
    initializer = partial(kinit.variance_scaling_, scale=3.0, mode=mode, distribution=distribution)
    values = K.VarianceScaling(3.0, mode, distribution, seed=7)(KERNEL)
    check_against_draw(law(initializer, KERNEL, compute_fans(KERNEL)), values, distribution)


@pytest.mark.parametrize("name", [f"{who}_{law}" for who in ("lecun", "glorot", "he") for law in ("normal", "uniform")])
def test_the_names_have_the_moments_of_keras_draws(name):
    """Std and bounds of the six named laws are those of half a million values that Keras draws."""
    values = K.get({"class_name": name, "config": {"seed": 8}})(KERNEL)
    check_against_draw(law(name, KERNEL, compute_fans(KERNEL)), values, K.get(name).distribution)


def test_the_check_against_draws_rejects():
    """The comparison with draws refuses another law's std, and another law's bounds."""
    values = K.HeNormal(seed=8)(KERNEL)
    fans = compute_fans(KERNEL)
    for wrong in ("lecun_normal", "he_uniform", partial(kinit.variance_scaling_, scale=2.05)):
        with pytest.raises(AssertionError):
            check_against_draw(law(wrong, KERNEL, fans), values, "truncated_normal")


def test_fans_below_one_count_as_one():
    """A variable of size zero has the law that Keras' clamp at one gives it."""
    assert law("he_normal", (0, 7), compute_fans((0, 7))) == law("he_normal", (1, 7), compute_fans((1, 7)))
    assert law("glorot_uniform", (0, 7), (0, 7)).high == pytest.approx(math.sqrt(6 / 7))


# --- values that depend on each other, and constants ----------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 6), (3, 8), (8, 3), (2, 3, 4), (3, 2, 40), (1, 1)], ids=str)
@pytest.mark.parametrize("gain", [1.0, -0.5])
def test_orthogonal_has_the_std_of_its_draws(shape, gain):
    """The squares of every orthogonal matrix have one mean, the law's variance; Keras' and ours agree on it."""
    got = law(partial(kinit.orthogonal_, gain=gain), shape)
    ours = kinit.orthogonal_(torch.empty(shape, dtype=torch.float64), gain, layout="keras")
    assert got.std == pytest.approx(ours.square().mean().sqrt().item(), rel=1e-12)
    assert got.std == pytest.approx(K.Orthogonal(gain, seed=1)(shape).square().mean().sqrt().item(), rel=1e-5)
    assert (got.mean, got.low, got.high) == (0, -abs(gain), abs(gain))


FIXED = {
    "zeros": ("zeros", K.Zeros(), (3, 5)),
    "ones": ("ones", K.Ones(), (3, 5)),
    "number": (-0.25, K.Constant(-0.25), (3, 5)),
    "NumPy number": (partial(kinit.constant_, value=np.float32(0.5)), K.Constant(0.5), ()),
    "integer": (partial(kinit.constant_, value=7), K.Constant(7), (4,)),
    "broadcast": (partial(kinit.constant_, value=np.arange(5.0)), K.Constant(np.arange(5.0)), (3, 5)),
    "array": (np.arange(15.0).reshape(3, 5), K.Constant(np.arange(15.0).reshape(3, 5)), (3, 5)),
    "identity": (partial(kinit.identity_, gain=-2.0), K.Identity(-2.0), (3, 5)),
    "stft": ("stft", K.STFT(), (16, 1, 9)),
    "stft imag": (partial(kinit.stft_, side="imag", window=None), K.STFT("imag", None), (16, 1, 9)),
    "unit_forget_bias": ("unit_forget_bias", K.Constant(np.repeat([0.0, 1.0, 0.0, 0.0], 3)), (12,)),
}


@pytest.mark.parametrize(("initializer", "keras_initializer", "shape"), FIXED.values(), ids=FIXED)
def test_an_initializer_without_chance_has_the_moments_of_its_values(initializer, keras_initializer, shape):
    """Mean, std, least and greatest of a constant law are those of the very values that Keras computes."""
    values = keras_initializer(shape).double()
    expected = (values.mean(), values.std(correction=0), values.min(), values.max())
    assert law(initializer, shape) == pytest.approx([float(x) for x in expected], rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(
    ("initializer", "shape"),
    [(torch.nn.init.xavier_uniform_, (3, 5)), (lambda t: t, (3, 5)), (np.empty((0, 3)), (0, 3)), ("orthogonal", (0, 3)),
     ("identity", (0, 3))],
    ids=["torch's", "lambda", "empty array", "empty orthogonal", "empty identity"],
)  # fmt: skip
def test_unknown_laws_have_no_moments(initializer, shape):
    """Of somebody else's function, and of no values at all, nothing is said."""
    assert law(initializer, shape) is None
