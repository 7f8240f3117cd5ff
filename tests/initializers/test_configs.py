"""Configs are read as Keras reads them, and Keras reads those that `serialize` writes."""

import copy
import functools
import json
import math

import keras
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import torch_kinit as kinit
from tests.support.keras_initializers import CONCRETE, drawn
from torch_kinit.initializers.names import recipe

K = keras.initializers
partial = functools.partial


# --- read ------------------------------------------------------------------------------------------------------------

SAVED = {
    "Keras 2 lecun_normal": ("VarianceScaling", {"scale": 1.0, "mode": "fan_in", "distribution": "normal"}),
    "Keras 2 he_uniform": ("VarianceScaling", {"scale": 2.0, "mode": "fan_in", "distribution": "uniform"}),
    "Keras 2 RandomUniform": ("RandomUniform", {"minval": -0.1, "maxval": 0.2, "seed": None}),
    "Keras 2 Constant": ("Constant", {"value": 0}),
    "distribution in capitals": ("VarianceScaling", {"distribution": "Normal"}),
    "tf.keras legacy": ("GlorotUniform", {"seed": None}),
    "tf.keras Identity": ("Identity", {"gain": 1.0}),
    "snake_case class": ("he_normal", {}),
    "alias as class": ("OrthogonalInitializer", {"gain": 0.5}),
    "no config": ("Orthogonal", None),
    "some keys": ("TruncatedNormal", {"stddev": 0.02}),
    "Keras 3.14": ("VarianceScaling", {"distribution": "untruncated_normal", "mode": "fan_out", "seed": None}),
    "Keras 3.15 axes": ("GlorotNormal", {"seed": None, "input_axes": [0], "output_axes": [1, -1]}),
    "array of integers": (
        "Constant",
        {"value": {"class_name": "__numpy__", "config": {"value": [[1, 2], [3, 4]], "dtype": "int64"}}},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "config"), SAVED.values(), ids=SAVED)
def test_a_saved_config_is_read_as_keras_reads_it(name, config):
    """A config of Keras 2, tf.keras or Keras 3, in the legacy or the full form, is what Keras 3.15 makes of it."""
    legacy = {"class_name": name, "config": config}
    for saved in (legacy, {**legacy, "module": "keras.initializers", "registered_name": None}):
        before = copy.deepcopy(saved)
        assert kinit.serialize(kinit.get(saved)) == K.serialize(K.get(saved))
        assert saved == before


@pytest.mark.parametrize("name", ["RandomNormal", "VarianceScaling", "Zeros", "Identity", "Constant"])
def test_the_dtype_that_tensorflow_1_wrote_is_dropped(name):
    """A config's "dtype", which tf.keras drops and Keras 3 refuses, changes nothing."""
    config = K.serialize(CONCRETE[name]())["config"]
    saved = {"class_name": name, "config": {**config, "dtype": "float32"}}
    assert kinit.serialize(kinit.get(saved)) == kinit.serialize(name)


KERAS_OBJECTS = [
    K.Zeros(), K.Ones(), K.Constant(0.5), K.Constant([1.0, 2.0]), K.Constant(np.arange(6.0).reshape(2, 3)),
    K.Constant(np.arange(3, dtype="int8")), K.RandomNormal(1.0, 0.1), K.TruncatedNormal(-1.0, 0.2),
    K.RandomUniform(0.0, 0.5), K.VarianceScaling(2.0, "fan_avg", "uniform", input_axes=[0], output_axes=[1, 2]),
    K.HeNormal(input_axes=[1], output_axes=[0]), K.LecunUniform(), K.Orthogonal(0.3), K.Identity(),
    K.STFT("imag", "hamming", None, True), K.STFT(window=None), K.STFT(window=[0.0, 1.0, 0.5]),
]  # fmt: skip


@pytest.mark.parametrize("initializer", KERAS_OBJECTS, ids=lambda i: f"{type(i).__name__}-{str(i.get_config())[:40]}")
def test_a_config_of_keras_comes_back_as_it_was(initializer):
    """serialize(get(config)) is the config, whether it goes in as a dict, through JSON or as the object."""
    config = K.serialize(initializer)
    assert kinit.serialize(kinit.get(config)) == config
    assert kinit.serialize(json.loads(json.dumps(config))) == config
    assert kinit.serialize(initializer) == config


AXES = st.lists(st.integers(-3, 3), max_size=3)


@settings(deadline=None)
@given(
    scale=st.floats(1e-6, 1e6),
    mode=st.sampled_from(["fan_in", "fan_out", "fan_avg"]),
    distribution=st.sampled_from(["truncated_normal", "untruncated_normal", "uniform", "normal"]),
    axes=st.one_of(st.just((None, None)), st.tuples(AXES, AXES)),
)
def test_any_variance_scaling_comes_back_as_it_was(scale, mode, distribution, axes):
    """Whatever its arguments, a VarianceScaling of Keras survives the way there and back."""
    config = K.serialize(K.VarianceScaling(scale, mode, distribution, None, *axes))
    assert kinit.serialize(kinit.get(config)) == config


@pytest.mark.parametrize("axes", [{"input_axes": [0]}, {"output_axes": [0]}], ids=lambda a: next(iter(a)))
def test_axes_of_one_side_alone_mean_nothing(axes):
    """With one of input_axes and output_axes Keras goes by the shape, and so does what is read from its config."""
    alone = K.HeUniform(seed=1, **axes)((3, 5, 7))
    assert torch.equal(alone, K.HeUniform(seed=1)((3, 5, 7)))
    assert kinit.get(K.HeUniform(**axes)) is kinit.he_uniform_


SEEDED = {
    "int": {"class_name": "HeNormal", "config": {"seed": 42}},
    "zero": {"class_name": "HeNormal", "config": {"seed": 0}},
    "SeedGenerator": K.serialize(K.HeNormal(keras.random.SeedGenerator(7))),
    "SeedGenerator before 3.14": {"class_name": "HeNormal", "config": {"seed": {
        "module": "keras.random", "class_name": "SeedGenerator", "config": {"seed": 7}, "registered_name": None}}},
    "object": K.HeNormal(3),
    "object with a SeedGenerator": K.HeNormal(keras.random.SeedGenerator(7)),
}  # fmt: skip


@pytest.mark.parametrize("identifier", SEEDED.values(), ids=SEEDED)
def test_a_seed_is_left_out_with_a_warning(identifier):
    """A config's seed names a stream of Keras' own: the law is kept, and a warning points at the caller's line."""
    with pytest.warns(UserWarning, match="seed in the config of HeNormal") as caught:
        assert kinit.get(identifier) is kinit.he_normal_
    assert [w.filename for w in caught] == [__file__]


ARRAYS = {
    "float64": np.array([0.25, -3.0]),
    "float32 list": [0.25, -3.0],
    "bool": np.array([True, False]),
    "uint32": np.array([1, 7], dtype="uint32"),
    "bfloat16": torch.tensor([0.25, -3.0], dtype=torch.bfloat16),
    "matrix": np.arange(6.0).reshape(3, 2),
    "reversed": np.array([0.25, -3.0])[::-1],
    "0-d": np.array(2.0),
}


@pytest.mark.parametrize("value", ARRAYS.values(), ids=ARRAYS)
def test_constant_takes_arrays_as_keras_does(value):
    """Constant of an array, as Keras saves it or as an object, broadcasts along Keras' axes to Keras' values."""
    initializer = K.Constant(value)
    expected = initializer((3, 2))
    for identifier in (initializer, K.serialize(initializer), json.loads(json.dumps(K.serialize(initializer)))):
        assert torch.equal(drawn(kinit.get(identifier), (3, 2), layout="keras"), expected)
        assert torch.equal(kinit.get(identifier)(torch.empty(2, 3)), expected.T)


# --- written ---------------------------------------------------------------------------------------------------------

AXES_GIVEN = {"fans": ((0,), (1, 2))}


def scaled(scale, mode, distribution):
    """The attributes of a VarianceScaling of Keras with AXES_GIVEN."""
    axes = {"input_axes": [0], "output_axes": [1, 2]}
    return {"scale": scale, "mode": mode, "distribution": distribution, **axes}


OURS = [  # an initializer, and the attributes of the Keras object it becomes
    (kinit.zeros_, {}, {}),
    (kinit.ones_, {}, {}),
    (kinit.constant_, {"value": 0.5}, {"value": 0.5}),
    (kinit.random_normal_, {"mean": 1.0, "std": 0.25}, {"mean": 1.0, "stddev": 0.25}),
    (kinit.random_normal_, {"std": np.float64(0.25)}, {"stddev": 0.25}),
    (kinit.random_uniform_, {"low": 0.5, "high": np.float32(0.75)}, {"minval": 0.5, "maxval": 0.75}),
    (kinit.trunc_normal_, {"mean": -1.0, "std": 2.0}, {"mean": -1.0, "stddev": 2.0}),
    (kinit.trunc_normal_, {"lower": -2, "upper": 2}, {"mean": 0.0, "stddev": 0.05}),
    (kinit.variance_scaling_, {"scale": 3.0, "mode": "fan_out", "distribution": "uniform", **AXES_GIVEN},
     scaled(3.0, "fan_out", "uniform")),
    (kinit.variance_scaling_, {"distribution": "untruncated_normal"},
     {"distribution": "untruncated_normal", "input_axes": None, "output_axes": None}),
    (kinit.lecun_normal_, AXES_GIVEN, scaled(1.0, "fan_in", "truncated_normal")),
    (kinit.lecun_uniform_, AXES_GIVEN, scaled(1.0, "fan_in", "uniform")),
    (kinit.glorot_normal_, AXES_GIVEN, scaled(1.0, "fan_avg", "truncated_normal")),
    (kinit.glorot_uniform_, AXES_GIVEN, scaled(1.0, "fan_avg", "uniform")),
    (kinit.he_normal_, AXES_GIVEN, scaled(2.0, "fan_in", "truncated_normal")),
    (kinit.he_uniform_, AXES_GIVEN, scaled(2.0, "fan_in", "uniform")),
    (kinit.orthogonal_, {"gain": 0.5}, {"gain": 0.5}),
    (kinit.identity_, {"gain": 3.0}, {"gain": 3.0}),
    (kinit.stft_, {"side": "imag", "window": "hamming", "scaling": "spectrum", "periodic": True},
     {"side": "imag", "window": "hamming", "scaling": "spectrum", "periodic": True}),
    (kinit.stft_, {"window": None, "scaling": None}, {"window": None, "scaling": None}),
]  # fmt: skip


@pytest.mark.parametrize(("function", "arguments", "attributes"), OURS, ids=lambda x: getattr(x, "__name__", None))
def test_keras_reads_what_we_write(function, arguments, attributes):
    """Keras makes an object with the same arguments of what `serialize` writes, also through JSON and back."""
    written = kinit.serialize(partial(function, **arguments))
    read = K.deserialize(json.loads(json.dumps(written)))
    assert type(read) in CONCRETE.values()
    assert {name: getattr(read, name) for name in attributes} == attributes
    assert kinit.serialize(read) == written
    assert kinit.get(written) is function or kinit.get(written).func is function


def test_every_initializer_can_be_written():
    """The table of the test above has every function of ours that Keras knows."""
    functions = {getattr(kinit, name) for name in kinit.__all__ if name.endswith("_")}
    assert functions - {function for function, _, _ in OURS} == {kinit.unit_forget_bias_}


FIXED = [
    (partial(kinit.constant_, value=np.arange(2.0)), (3, 2)),
    (partial(kinit.constant_, value=torch.tensor([1.0, 2.0], dtype=torch.float64)), (3, 2)),
    (partial(kinit.constant_, value=[[1.0, 2.0]]), (3, 2)),
    (partial(kinit.constant_, value=np.arange(4.0)[::-2]), (3, 2)),
    (partial(kinit.identity_, gain=-2.0), (3, 4)),
    (partial(kinit.stft_, window=np.array([0.5, 1.0, 2.0]), side="imag"), (3, 1, 4)),
    (partial(kinit.stft_, window=torch.tensor([0.5, 1.0, 2.0]), scaling=None), (3, 1, 4)),
    (partial(kinit.stft_, window=[0.5, 1.0, 2.0]), (3, 1, 4)),
    (partial(kinit.stft_, window="blackman", scaling="spectrum"), (6, 1, 4)),
]


@pytest.mark.parametrize(("ours", "shape"), FIXED, ids=lambda x: str(recipe(x)) if callable(x) else None)
def test_keras_computes_the_values_we_compute(ours, shape):
    """Of an initializer without chance, Keras gives the same values when it has read our config."""
    context = {} if ours.func is kinit.identity_ else {"layout": "keras"}
    expected = K.deserialize(kinit.serialize(ours))(shape)
    assert torch.allclose(drawn(ours, shape, **context), expected, rtol=1e-5, atol=1e-6)  # Keras computes in float32


NOT_KERAS = {
    "bounds": (partial(kinit.trunc_normal_, lower=-1.0, upper=2.0), "TruncatedNormal has no argument .*`lower`=-1.0"),
    "one-sided": (partial(kinit.trunc_normal_, upper=math.inf), "`upper`=inf"),
    "integer fans": (partial(kinit.he_normal_, fans=(3, 4)), r"cannot express `fans`=\(3, 4\)"),
    "NumPy fans": (partial(kinit.he_normal_, fans=(np.int64(3), np.int64(4))), "cannot express `fans`"),
    "mixed fans": (partial(kinit.he_normal_, fans=((0,), 4)), "cannot express `fans`"),
    "generator": (partial(kinit.he_normal_, generator=torch.Generator()), "HeNormal has no argument .*`generator`"),
    "bare normal": (partial(kinit.variance_scaling_, distribution="normal"), "truncated_normal.*untruncated_normal"),
    "unit_forget_bias": (kinit.unit_forget_bias_, "unit_forget_bias"),
    "torch's": (torch.nn.init.xavier_uniform_, "torch.nn.init.xavier_uniform_"),
    "torch's partial": (partial(torch.nn.init.normal_, std=2.0), "torch.nn.init.normal_"),
    "lambda": (lambda tensor: tensor, "lambda"),
    "array": (np.ones(3), r"array of shape \(3,\)"),
    "a bool": (True, "True of type bool"),
}


@pytest.mark.parametrize(("initializer", "says"), NOT_KERAS.values(), ids=NOT_KERAS)
def test_what_keras_cannot_express_is_not_written(initializer, says):
    """An argument or function that Keras lacks is a ValueError, never left out of the config."""
    with pytest.raises(ValueError, match=says):
        kinit.serialize(initializer)
