"""The five laws the library exists for, and the rest of Keras' scaled and plain initializers."""

import functools
import inspect
import math

import keras
import numpy as np
import pytest
import torch
from keras.src.initializers.random_initializers import compute_fans

import torch_kinit as kinit
from tests.support.laws import N, Normal, TruncatedAtTwo, Uniform, check_law

# Shapes where conventions differ: rectangular, with a kernel of unequal sides. All hold 2**18 values or more.
SHAPES = {"Linear": (300, 900), "Conv2d": (96, 48, 8, 9), "Conv1d": (512, 64, 8)}
keras_shape = {name: (*shape[2:], shape[1], shape[0]) for name, shape in SHAPES.items()}

# Variance n*scale from the papers' formulas with Keras' fans: (numerator, which fan), and the law's shape.
NAMED = {
    "lecun_normal": (1, "in", "truncated"),
    "lecun_uniform": (1, "in", "uniform"),
    "glorot_normal": (2, "sum", "truncated"),
    "glorot_uniform": (2, "sum", "uniform"),
    "he_normal": (2, "in", "truncated"),
    "he_uniform": (2, "in", "uniform"),
}


def law_of(variance, kind):
    if kind == "uniform":
        return Uniform(-math.sqrt(3 * variance), math.sqrt(3 * variance))
    if kind == "untruncated":
        return Normal(0, math.sqrt(variance))
    return TruncatedAtTwo(0, math.sqrt(variance) / 0.8796256610342398)  # scipy.stats.truncnorm.std(-2, 2)


@pytest.mark.parametrize("layer", SHAPES)
@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("layout", ["torch", "keras"])
def test_a_named_initializer_has_its_law(name, layer, layout, device):
    """Each of the six names has the variance of its paper, with the fans that Keras computes for the shape."""
    numerator, which, kind = NAMED[name]
    fan_in, fan_out = compute_fans(keras_shape[layer])
    variance = numerator / (fan_in if which == "in" else fan_in + fan_out)
    shape = SHAPES[layer] if layout == "torch" else keras_shape[layer]
    tensor = torch.empty(shape, device=device)
    assert getattr(kinit, name + "_")(tensor, layout=layout) is tensor
    check_law(tensor, law_of(variance, kind))


@pytest.mark.parametrize("mode", ["fan_in", "fan_out", "fan_avg"])
@pytest.mark.parametrize("distribution", ["truncated_normal", "untruncated_normal", "uniform"])
def test_variance_scaling_has_its_law(mode, distribution):
    """variance_scaling_ has variance scale / n for n of each mode, in each distribution."""
    fan_in, fan_out = compute_fans(keras_shape["Conv2d"])
    n = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[mode]
    tensor = kinit.variance_scaling_(torch.empty(SHAPES["Conv2d"]), 3.7, mode, distribution)
    check_law(tensor, law_of(3.7 / n, distribution.removesuffix("_normal")))


@pytest.mark.parametrize("name", ["HeNormal", "GlorotNormal", "LecunNormal", "TruncatedNormal"])
def test_keras_own_draws_pass_the_same_check(name):
    """Keras' numpy-visible values fit the laws used here, so the laws are Keras'. (Its torch backend leaks past
    the bounds, 4 in a million, hence the clamp.)"""
    shape = (600, 500)
    values = torch.tensor(np.asarray(getattr(keras.initializers, name)(seed=1)(shape)))
    fans = {"HeNormal": 2 / 600, "GlorotNormal": 2 / 1100, "LecunNormal": 1 / 600}
    law = TruncatedAtTwo(0, 0.05) if name == "TruncatedNormal" else law_of(fans[name], "truncated")
    assert float((values.abs() > law.high).double().mean()) < 1e-4
    check_law(values.double().clamp(law.low, law.high), law)


@pytest.mark.parametrize("shape", [(), (7,), (0, 7), (7, 0), (1, 0, 3)])
def test_small_and_empty_shapes_have_keras_clamps(shape):
    """Fans below one count as one and the mean of the fans is clamped, not each, as in Keras: never an error."""
    for name in ("HeNormal", "GlorotUniform"):
        getattr(keras.initializers, name)(seed=0)(shape)
    for fill in (kinit.he_normal_, kinit.glorot_uniform_, kinit.variance_scaling_):
        tensor = torch.empty(shape)
        assert bool(torch.isfinite(fill(tensor, layout="keras")).all())


def test_the_clamp_is_on_the_mean_of_the_fans():
    """Fans (0, 7) give fan_avg n = 3.5, and fans (0, 1) n = 1."""
    check_law(kinit.glorot_uniform_(torch.empty(N), fans=(0, 7)), Uniform(-math.sqrt(3 / 3.5), math.sqrt(3 / 3.5)))
    check_law(kinit.glorot_uniform_(torch.empty(N), fans=(0, 1)), Uniform(-math.sqrt(3), math.sqrt(3)))


@pytest.mark.parametrize(
    ("fans", "axes"), [((12, 40), ([1], [2])), ((240, 12), ([0, 1, 2], [1])), ((1, 40), ([], [2]))], ids=str
)
def test_fans_are_taken_from_ints_or_axes(fans, axes):
    """`fans` replaces the shape's: as ints, or as axes of the Keras-layout shape, as Keras 3.15 reads them."""
    shape = (20, 12, 40)
    by_keras = compute_fans((0.5, 12, 40), *axes) if not axes[0] else None
    assert by_keras is None or by_keras == fans
    law = law_of(2 / fans[0], "truncated")
    axes_here = tuple(tuple(a) for a in axes)
    if fans == (240, 12):  # overlapping axes
        fans = compute_fans(shape, *axes)
        law = law_of(2 / fans[0], "truncated")
    big = torch.empty(20, 12, 40, 30)
    check_law(kinit.he_normal_(big, fans=fans), law)
    check_law(
        torch.cat([kinit.he_normal_(torch.empty(shape), fans=axes_here, layout="keras").flatten() for _ in range(30)]),
        law,
    )


def test_constants_fill():
    """zeros_, ones_ and constant_ fill in every dtype; arrays broadcast in Keras' layout, as Keras' Constant does."""
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert bool((kinit.zeros_(torch.ones(3, dtype=dtype)) == 0).all())
        assert bool((kinit.ones_(torch.zeros(3, dtype=dtype)) == 1).all())
        assert bool((kinit.constant_(torch.zeros(2, 3, dtype=dtype), -0.5) == -0.5).all())
    values = [1.0, 2.0, 3.0]
    expected = np.asarray(keras.initializers.Constant(values)((2, 3)))
    assert np.array_equal(kinit.constant_(torch.empty(3, 2), values).t().numpy(), expected)
    assert np.array_equal(kinit.constant_(torch.empty(2, 3), np.array(values), layout="keras").numpy(), expected)


def test_unit_forget_bias_is_that_of_keras():
    """unit_forget_bias_ gives the bias that Keras' LSTM starts with."""
    layer = keras.layers.LSTM(5)
    layer.build((None, 3, 4))
    assert np.array_equal(kinit.unit_forget_bias_(torch.empty(20)).numpy(), np.asarray(layer.cell.bias))


def test_signatures_are_those_of_the_design():
    """Law parameters go by position in Keras' order; what torch reads differently is keyword-only."""
    expected = {
        "random_normal_": ["mean=0.0", "std=0.05"],
        "random_uniform_": ["low=-0.05", "high=0.05"],
        "trunc_normal_": ["mean=0.0", "std=0.05"],
        "variance_scaling_": ["scale=1.0", "mode='fan_in'", "distribution='truncated_normal'"],
        **{f"{name}_": [] for name in NAMED},
        "constant_": ["value=0.0"],
        "orthogonal_": ["gain=1.0"],
        "identity_": ["gain=1.0"],
        "stft_": ["side='real'", "window='hann'", "scaling='density'", "periodic=False"],
    }
    for name, positional in expected.items():
        parameters = list(inspect.signature(getattr(kinit, name)).parameters.values())
        by_position = [p for p in parameters[1:] if p.kind is p.POSITIONAL_OR_KEYWORD]
        assert [f"{p.name}={p.default!r}" for p in by_position] == positional
    with pytest.raises(TypeError):
        kinit.trunc_normal_(torch.empty(3), 0.0, 1.0, -2.0, 2.0)  # torch.nn.init's call


@pytest.mark.parametrize(
    "fill",
    [functools.partial(kinit.he_normal_), kinit.random_normal_, kinit.trunc_normal_, kinit.orthogonal_],
    ids=["he_normal", "random_normal", "trunc_normal", "orthogonal"],
)
def test_values_are_drawn_anew_each_call(fill):
    """Two calls without a generator differ."""
    assert not torch.equal(fill(torch.empty(30, 30)), fill(torch.empty(30, 30)))


@pytest.mark.parametrize("name", NAMED)
def test_a_named_initializer_passes_its_arguments_on(name):
    """`fans` and `generator` reach the engine under each of the six names."""
    numerator, which, kind = NAMED[name]
    fill = getattr(kinit, name + "_")
    before = torch.get_rng_state()
    first, second = (fill(torch.empty(N), fans=(50, 70), generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)
    check_law(first, law_of(numerator / (50 if which == "in" else 120), kind))
