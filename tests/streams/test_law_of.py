"""kinit.law gives the law of an initializer's values, by what Keras draws and by what is drawn here."""

import functools
import math

import keras
import numpy as np
import pytest
import torch
from keras.src.initializers.random_initializers import compute_fans

import torch_kinit as kinit
from tests.support.laws import KS_BOUND, N, ks
from torch_kinit import Constant, Normal, TruncatedNormal, Uniform

K = keras.initializers
INF = math.inf
partial = functools.partial


def law(initializer, shape=(3, 5), fans=None):
    """The law of an initializer's values in a variable of this Keras-layout shape."""
    return kinit.law(initializer, shape, layout="keras", fans=fans)


def numbers(found):
    """Mean, std and bounds of a law."""
    return found.mean, found.std, *found.bounds


# --- laws of given numbers -------------------------------------------------------------------------------------------


def test_the_defaults_are_those_of_keras():
    """Without arguments the plain laws have Keras' numbers."""
    assert law("random_normal") == Normal(0.0, K.RandomNormal().stddev)
    assert law("random_uniform") == Uniform(K.RandomUniform().minval, K.RandomUniform().maxval)
    assert law("truncated_normal") == TruncatedNormal(0.0, K.TruncatedNormal().stddev, -2.0, 2.0)


def test_arguments_are_those_of_the_law():
    """The arguments of an initializer are those of its law."""
    assert law(partial(kinit.random_uniform_, low=-0.5, high=2.0)) == Uniform(-0.5, 2.0)
    assert law(partial(kinit.random_normal_, mean=0.7, std=0.02)) == Normal(0.7, 0.02)
    assert law(partial(kinit.trunc_normal_, mean=0.7, std=0.02, lower=-1, upper=INF)) == TruncatedNormal(
        0.7, 0.02, -1.0, INF
    )
    assert law(partial(kinit.constant_, value=np.float32(0.5))) == law(0.5) == Constant(0.5)


@pytest.mark.parametrize("function", [kinit.random_normal_, kinit.trunc_normal_], ids=lambda f: f.__name__)
def test_without_spread_all_values_are_the_mean(function):
    """With std 0, mean, least and greatest are one number, which the initializer draws."""
    initializer = partial(function, mean=0.25, std=0.0)
    assert initializer(torch.empty(3)).tolist() == [0.25] * 3
    assert numbers(law(initializer)) == (0.25, 0.0, 0.25, 0.25)


# --- scaled laws, against what Keras draws ---------------------------------------------------------------------------

KERNEL = (4, 4, 64, 512)  # 2**19 values, rectangular: all three modes differ
RELATIVE_ERROR = {"truncated_normal": 0.584, "untruncated_normal": 0.707, "uniform": 0.447}  # of a std, times sqrt(n)


def check_against_draw(got, values, distribution):
    """Compare a law with 2**19 values by six standard errors, and its bounds with their extremes."""
    x = values.double().flatten().numpy()
    assert got.mean == 0
    assert abs(x.mean()) <= 6 * got.std / math.sqrt(x.size)
    assert abs(x.std() / got.std - 1) <= 6 * RELATIVE_ERROR[distribution] / math.sqrt(x.size)
    low, high = got.bounds
    assert low == -high
    if distribution == "untruncated_normal":
        assert high == INF
    else:  # Keras' torch backend lets a few in a million out of a truncated normal's bounds
        assert np.mean(np.abs(x) > high * (1 + 1e-6)) < 3e-5
        assert np.quantile(np.abs(x), 0.9999) == pytest.approx(high, rel=2e-3)


@pytest.mark.parametrize("distribution", RELATIVE_ERROR)
@pytest.mark.parametrize("mode", ["fan_in", "fan_out", "fan_avg"])
def test_variance_scaling_has_the_moments_of_keras_draws(mode, distribution):
    """Std and bounds of every mode and distribution are those of half a million values that Keras draws."""
    initializer = partial(kinit.variance_scaling_, scale=3.0, mode=mode, distribution=distribution)
    values = K.VarianceScaling(3.0, mode, distribution, seed=7)(KERNEL)
    assert law(initializer, KERNEL) == law(initializer, KERNEL, compute_fans(KERNEL))  # by the shape alone, too
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
    assert law("glorot_uniform", (0, 7), (0, 7)).bounds[1] == pytest.approx(math.sqrt(6 / 7))


# --- values that depend on each other, and constants ----------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 6), (3, 8), (8, 3), (2, 3, 4), (3, 2, 40), (1, 1)], ids=str)
@pytest.mark.parametrize("gain", [1.0, -0.5])
def test_orthogonal_has_the_std_of_its_draws(shape, gain):
    """The squares of every orthogonal matrix have one mean, the law's variance; Keras' and ours agree on it."""
    got = law(partial(kinit.orthogonal_, gain=gain), shape)
    ours = kinit.orthogonal_(torch.empty(shape, dtype=torch.float64), gain, layout="keras")
    assert got.std == pytest.approx(ours.square().mean().sqrt().item(), rel=1e-12)
    assert got.std == pytest.approx(K.Orthogonal(gain, seed=1)(shape).square().mean().sqrt().item(), rel=1e-5)
    assert (got.mean, got.bounds) == (0, (-abs(gain), abs(gain)))


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
    assert numbers(law(initializer, shape)) == pytest.approx([float(x) for x in expected], rel=1e-5, abs=1e-7)


UNKNOWN = {
    "torch's": (torch.nn.init.xavier_uniform_, (3, 5), "none of this package's initializers"),
    "lambda": (lambda t: t, (3, 5), "none of this package's initializers"),
    "empty array": (np.empty((0, 3)), (0, 3), "not known"),
    "empty orthogonal": ("orthogonal", (0, 3), "not known"),
    "empty identity": ("identity", (0, 3), "not known"),
    "others at the gates": (partial(kinit.unit_forget_bias_, others=kinit.random_normal_), (12,), "not known"),
}


@pytest.mark.parametrize(("initializer", "shape", "message"), UNKNOWN.values(), ids=UNKNOWN)
def test_unknown_laws_are_refused(initializer, shape, message):
    """Of somebody else's function, of no values at all, and of several laws side by side, nothing is said."""
    with pytest.raises(ValueError, match=message):
        law(initializer, shape)


REFUSED = {
    "unknown name": (("he_norma", (3, 5)), {}, ValueError, "Did you mean 'he_normal'"),
    "no initializer": ((object(), (3, 5)), {}, ValueError, "Could not interpret the initializer"),
    "none": ((None, (3, 5)), {}, ValueError, "Could not interpret the initializer None"),
    "no shape": (("zeros", 3), {}, TypeError, "a tensor or a shape"),
    "negative size": (("zeros", (3, -1)), {}, ValueError, "no negative sizes"),
    "layout": (("zeros", (3, 5)), {"layout": "jax"}, ValueError, "`layout` must be one of 'torch', 'keras', got 'jax'"),
    "fans": (("he_normal", (3, 5)), {"fans": 3}, ValueError, "`fans` must be"),
    "argument": ((partial(kinit.he_normal_, scale=2), (3, 5)), {}, TypeError, "takes no argument 'scale'"),
    "value": ((partial(kinit.random_normal_, std=-1.0), (3, 5)), {}, ValueError, "`std` must not be negative"),
    "vector": (("orthogonal", (3,)), {}, ValueError, "at least two axes"),
    "array": ((np.zeros((2, 3)), (3, 2)), {}, ValueError, r"the array has shape \(2, 3\)"),
    "dtype": (
        (partial(kinit.random_normal_, mean=1e6), torch.empty(3, dtype=torch.float16)), {}, ValueError, "cannot hold",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "settings", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_refusals(arguments, settings, error, message):
    """What could not be drawn has no law: the error is that of the draw."""
    with pytest.raises(error, match=message):
        kinit.law(*arguments, **settings)


# --- against what is drawn here --------------------------------------------------------------------------------------

# Each name that Keras has for an initializer, with the name of its class.
NAMES = {name: value.__name__ for name, value in vars(K).items() if isinstance(value, type) and name != "Initializer"}
WITHOUT_CHANCE = ("Constant", "Identity", "Ones", "STFT", "Zeros")
SHAPES = {"STFT": (9, 1, 16), "Identity": (30, 40), "Orthogonal": (100, 2700)}


def check_draw(values, found):
    """Raise AssertionError unless the values are within the law's support and have its mean, std and distribution."""
    x, (low, high) = values.flatten(), found.support(values.dtype)
    assert x.numel() >= N
    assert low <= float(x.min())
    assert float(x.max()) <= high
    assert abs(float(x.mean()) - found.mean) <= 6 * found.std / math.sqrt(x.numel())
    assert abs(float(x.std()) / found.std - 1) <= 6 * 0.707 / math.sqrt(x.numel())
    if found.drawn:
        assert ks(x, found.cdf) <= KS_BOUND


def test_all_classes_are_named():
    """The names below are those of all of Keras' initializers."""
    assert len(set(NAMES.values())) == 16
    assert {"he_normal", "zeros", "Orthogonal"} <= set(NAMES)


@pytest.mark.parametrize(("name", "class_name"), NAMES.items(), ids=NAMES)
def test_drawn_values_have_the_law(name, class_name):
    """The law of every Keras name is that of the values drawn: their moments, support and distribution."""
    weight = torch.empty(SHAPES.get(class_name, (1 << 10, 1 << 8)), dtype=torch.float64)
    found, values = kinit.law(name, weight), kinit.get(name)(weight)
    if class_name in WITHOUT_CHANCE:
        expected = values.mean(), values.std(correction=0), values.min(), values.max()
        assert numbers(found) == pytest.approx([float(x) for x in expected], abs=1e-15)
    else:
        check_draw(values, found)


def test_the_check_of_draws_rejects():
    """The check above refuses another distribution of the same std, another std, and values outside."""
    values = kinit.he_uniform_(torch.empty(1 << 10, 1 << 8, dtype=torch.float64))
    found = kinit.law("he_uniform", values)
    check_draw(values, found)
    for wrong in (Normal(0.0, found.std), kinit.law("lecun_uniform", values), Uniform(found.bounds[0], 0.9)):
        with pytest.raises(AssertionError):
            check_draw(values, wrong)


def test_layouts_and_fans():
    """The fans are those of the layout, or those given; a tensor says its dtype and shape."""
    assert kinit.law("he_normal", (8, 4, 3, 3)) == kinit.law("he_normal", (3, 3, 4, 8), layout="keras")
    assert kinit.law("he_normal", (8, 4, 3, 3)) != kinit.law("he_normal", (8, 4, 3, 3), layout="keras")
    given = kinit.law("glorot_uniform", torch.empty(8, 4), fans=(10, 14))
    assert given == Uniform(-0.5, 0.5)
    assert kinit.law(partial(kinit.glorot_uniform_, fans=(10, 14)), (8, 4)) == given
    assert kinit.law("he_uniform", (), fans=((), ())) == kinit.law("he_uniform", ())


def test_nothing_is_drawn_or_changed():
    """Asking for a law reads no random state and leaves the tensor as it was."""
    weight, state = torch.full((30, 40), 7.0), torch.get_rng_state()
    for name in ("he_normal", "orthogonal", "constant", "identity"):
        kinit.law(name, weight)
    assert torch.equal(torch.get_rng_state(), state)
    assert bool((weight == 7).all())
