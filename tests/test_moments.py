"""Fans and moments against Keras' own fans, SciPy's laws, and what Keras draws."""

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
from torch_kinit._identifiers import recipe
from torch_kinit._initializers import resolve_fans
from torch_kinit._moments import moments

K = keras.initializers
INF = math.inf
partial = functools.partial


def law(initializer, shape=(3, 5), fans=None):
    """The moments of an initializer's values in a variable of this Keras-layout shape."""
    return moments(recipe(initializer), shape, fans)


# --- fans ------------------------------------------------------------------------------------------------------------

SHAPES = st.lists(st.integers(0, 7), max_size=5).map(tuple)


@given(SHAPES)
@settings(deadline=None)
def test_fans_are_those_of_keras(shape):
    """A Keras-layout shape of any rank has the fans that Keras computes; so has the same weight as torch stores it."""
    assert kinit.fans(shape, layout="keras") == compute_fans(shape)
    stored = np.moveaxis(np.broadcast_to(0.0, shape), (-1, -2), (0, 1)) if len(shape) > 1 else np.empty(shape)
    assert kinit.fans(stored.shape) == compute_fans(shape)
    assert kinit.fans(torch.empty(stored.shape, device="meta")) == compute_fans(shape)


@pytest.mark.parametrize(
    ("module", "layer", "inputs"),
    [
        (torch.nn.Linear(3, 7), keras.layers.Dense(7), (1, 3)),
        (torch.nn.Conv1d(4, 6, 5), keras.layers.Conv1D(6, 5), (1, 9, 4)),
        (torch.nn.Conv2d(4, 6, (2, 3)), keras.layers.Conv2D(6, (2, 3)), (1, 9, 9, 4)),
        (torch.nn.Conv2d(4, 6, (2, 3), groups=2), keras.layers.Conv2D(6, (2, 3), groups=2), (1, 9, 9, 4)),
        (torch.nn.ConvTranspose2d(4, 6, 3), keras.layers.Conv2DTranspose(6, 3), (1, 9, 9, 4)),
        (torch.nn.Conv3d(2, 5, (1, 2, 3)), keras.layers.Conv3D(5, (1, 2, 3)), (1, 4, 4, 4, 2)),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, torch.nn.Module) else None,
)
def test_a_torch_weight_has_the_fans_of_its_keras_twin(module, layer, inputs):
    """A layer's weight as torch stores it has the fans that Keras computes for the twin layer's kernel."""
    layer.build(inputs)
    assert kinit.fans(module.weight) == compute_fans(layer.kernel.shape)


def test_fans_are_exact_integers():
    """Fans beyond the integers that a float can hold are exact, and come from any sequence of integers."""
    assert kinit.fans((2**40 + 1, 2**30 + 1, 3)) == compute_fans((3, 2**30 + 1, 2**40 + 1))
    for shape in ([7, 3], torch.Size([7, 3]), np.array([7, 3]).tolist(), (np.int64(7), np.int32(3))):
        assert kinit.fans(shape) == (3, 7)
        assert {type(n) for n in kinit.fans(shape)} == {int}


@st.composite
def shapes_and_axes(draw):
    shape = draw(st.lists(st.integers(0, 6), min_size=1, max_size=4).map(tuple))
    axes = st.lists(st.integers(-len(shape), len(shape) - 1), max_size=4).map(tuple)
    return shape, draw(axes), draw(axes)


@given(shapes_and_axes())
@settings(deadline=None)
def test_fans_by_axes_are_those_of_keras(given_axes):
    """`fans` as two tuples of axes, negative, repeated, overlapping or empty, are what Keras 3.15 makes of them."""
    shape, inputs, outputs = given_axes
    assert resolve_fans((inputs, outputs), shape) == compute_fans(shape, inputs, outputs)


@pytest.mark.parametrize(
    ("fans", "shape", "layout"),
    [
        (((0,), (1, 2)), (5, 2, 3), "keras"),  # the query kernel of Keras' MultiHeadAttention
        (((0, 1), (2,)), (2, 3, 5), "keras"),  # and its output kernel
        (((0, 1, 2), (3,)), (7, 4, 2, 3), "torch"),  # axes count in Keras' layout, here (2, 3, 4, 7)
    ],
)
def test_a_draw_uses_the_fans_of_its_axes(fans, shape, layout):
    """A weight drawn with axes is the one drawn with the fans that Keras computes from them."""
    keras_shape = shape if layout == "keras" else (*shape[2:], shape[1], shape[0])
    drawn = [
        kinit.glorot_uniform_(torch.empty(shape), fans=f, layout=layout, generator=torch.Generator().manual_seed(2))
        for f in (fans, compute_fans(keras_shape, *fans), (1, 1))
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


BAD_SHAPES = {
    "a number": (3, TypeError, "got 3"),
    "a word": ("ab", TypeError, "got 'ab'"),
    "None": (None, TypeError, "got None"),
    "floats": ((3.0, 2), TypeError, r"got \(3.0, 2\)"),
    "nested": ([[1, 2]], TypeError, r"got \[\[1, 2\]\]"),
    "negative": ((-1, 2), ValueError, r"negative.*\(-1, 2\)"),
    "lazy": (torch.nn.LazyLinear(3).weight, (TypeError, ValueError), "lazy"),
}


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.parametrize(("shape", "error", "says"), BAD_SHAPES.values(), ids=BAD_SHAPES)
def test_what_has_no_fans_is_refused(shape, error, says):
    """Anything but a tensor of known shape or a sequence of sizes is an error that shows it."""
    with pytest.raises(error, match=says):
        kinit.fans(shape)


@pytest.mark.parametrize("layout", ["tf", "Torch", None, 1])
def test_an_unknown_layout_is_refused(layout):
    """A layout other than the two is a ValueError that names them."""
    with pytest.raises(ValueError, match=f"`layout` must be 'torch' or 'keras', got {layout!r}"):
        kinit.fans((2, 3), layout=layout)


BAD_FANS = [
    *(3, (3,), (3, 4, 5), "ab", (-1, 2), (2.0, 3.0)),
    *((3, (1,)), ((0,), None), ((0,), (2,)), ((0,), (-3,)), ((0.0,), (1,))),
]


@pytest.mark.parametrize("fans", BAD_FANS, ids=repr)
def test_wrong_fans_are_refused(fans):
    """`fans` that are neither two sizes nor two tuples of axes there are a ValueError; the tensor keeps its values."""
    tensor = torch.ones(4, 3)
    with pytest.raises(ValueError, match=r"`fans` must be \(fan_in, fan_out\).*Keras-layout shape \(3, 4\); got"):
        kinit.he_normal_(tensor, fans=fans)
    assert torch.equal(tensor, torch.ones(4, 3))


# --- moments: laws of given numbers ----------------------------------------------------------------------------------


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


# --- moments: scaled laws, against what Keras draws ------------------------------------------------------------------

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


# --- moments: values that depend on each other, and constants --------------------------------------------------------


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
