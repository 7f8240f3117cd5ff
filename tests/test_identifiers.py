"""Keras' names and configs: what `get` takes, what `serialize` writes, both judged by Keras itself."""

import copy
import functools
import json
import math
import string
from dataclasses import dataclass

import keras
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from keras.src.initializers import ALL_OBJECTS_DICT

import torch_kinit as kinit
from torch_kinit._identifiers import recipe
from torch_kinit._recipes import Recipe

K = keras.initializers
partial = functools.partial

# Every class of Keras that can be called, by each string that names it; a new one fails these tests.
CONCRETE = {name: cls for name, cls in sorted(ALL_OBJECTS_DICT.items()) if cls is not K.Initializer}


def drawn(initializer, shape, **context):
    """What an initializer of ours gives for a variable of this Keras-layout shape."""
    return initializer(torch.empty(shape), **context)


# --- names, classes, objects -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONCRETE)
def test_a_keras_name_means_what_it_means_in_keras(name):
    """Every string in Keras' own table gives the class and the defaults that Keras gives it."""
    # the class is called, for Keras 3.15's get("constant") is a KeyError
    assert kinit.serialize(kinit.get(name)) == K.serialize(CONCRETE[name]())


@pytest.mark.parametrize("cls", sorted(set(CONCRETE.values()), key=lambda c: c.__name__), ids=lambda c: c.__name__)
def test_a_keras_class_or_object_is_taken(cls):
    """A class of Keras, or an object of it, means what its name means."""
    assert kinit.serialize(kinit.get(cls)) == K.serialize(cls())
    assert kinit.serialize(kinit.get(cls())) == K.serialize(cls())


@pytest.mark.parametrize("name", ["Initializer", "initializer", K.Initializer, K.Initializer()], ids=str)
def test_the_abstract_class_is_refused(name):
    """Keras' abstract Initializer, which raises when it is called, is refused at once."""
    with pytest.raises(ValueError, match=r"'[Ii]nitializer'"):
        kinit.get(name)


@pytest.mark.parametrize("name", ["GlorotUniform", "Constant", "glorot_uniform", "he_normal", "Orthogonal", "zeros"])
def test_tf_keras_names_with_v2_are_taken(name):
    """The names that tf.keras took for saved configs, GlorotUniformV2 or he_normalV2, name the same laws."""
    assert kinit.get(f"{name}V2") is kinit.get(name)


def test_names_of_our_own_are_taken():
    """The two names that the rules have beyond Keras' give the functions they are called after."""
    assert kinit.get("trunc_normal") is kinit.trunc_normal_
    assert kinit.get("unit_forget_bias") is kinit.unit_forget_bias_


NO_NAMES = ["xavier_uniform", "lecun", "HE_NORMAL", "he_normal_", "", "V2", "function", "keras.initializers.HeNormal"]


@pytest.mark.parametrize("name", NO_NAMES)
def test_a_name_that_keras_refuses_is_refused(name):
    """Names in use elsewhere, other cases, dots and blanks are no names, here as in Keras."""
    with pytest.raises((ValueError, KeyError)):
        K.get(name)
    with pytest.raises(ValueError, match=f"Unknown initializer {name!r}"):
        kinit.get(name)


@settings(deadline=None)
@given(st.sampled_from([n for n in CONCRETE if len(n) > 4]), st.data())
def test_a_misspelt_name_is_answered_with_the_right_one(name, data):
    """A name with one letter changed is refused, and the name that was meant is among the near misses."""
    where = data.draw(st.integers(1, len(name) - 1))
    wrong = name[:where] + data.draw(st.sampled_from(string.ascii_lowercase)) + name[where + 1 :]
    assume(wrong not in CONCRETE)
    with pytest.raises(ValueError, match=f"Unknown initializer '{wrong}'. Did you mean .*'{name}'"):
        kinit.get(wrong)


# --- configs ---------------------------------------------------------------------------------------------------------

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


# --- anything else ---------------------------------------------------------------------------------------------------


def test_none_and_functions_come_back_as_they_are():
    """None is None, a function is that function, and a partial keeps its function and keywords."""

    def mine(tensor):
        return tensor

    assert kinit.get(None) is K.get(None) is None
    for function in (mine, kinit.he_normal_, torch.nn.init.xavier_uniform_):
        assert kinit.get(function) is function
    got = kinit.get(partial(partial(kinit.trunc_normal_, std=0.02), lower=-1.0))
    assert (got.func, got.keywords) == (kinit.trunc_normal_, {"std": 0.02, "lower": -1.0})


@dataclass
class Filler:
    """A callable object; as a dataclass it has no hash, and as an object no `__name__`."""

    value: float

    def __call__(self, tensor):
        return tensor.fill_(self.value)


def test_a_callable_object_without_hash_is_an_initializer():
    """Any callable is taken, hashable or not, alone or in a partial; Keras has no config for it."""
    assert kinit.get(Filler(2.0)) == Filler(2.0)
    assert kinit.get(partial(Filler(2.0)))(torch.empty(1)).item() == 2.0
    with pytest.raises(ValueError, match=r"Keras has no initializer that is .*Filler"):
        kinit.serialize(Filler(2.0))


@pytest.mark.parametrize("number", [3, -0.5, np.float64(0.25)], ids=repr)
def test_a_number_is_a_constant(number):
    """A number fills a tensor of any shape with itself."""
    assert torch.equal(drawn(kinit.get(number), (2, 3)), torch.full((2, 3), float(number)))
    assert kinit.serialize(number) == K.serialize(K.Constant(number))


def _read_only():
    array = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    array.flags.writeable = False
    return array


DIRECT = {
    "numpy": np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]),
    "integers": np.arange(6).reshape(3, 2),
    "bool": np.eye(3, 2, dtype=bool),
    "uint32": np.arange(6, dtype="uint32").reshape(3, 2),
    "float16": np.ones((3, 2), "float16"),
    "columns": np.asfortranarray(np.arange(6.0).reshape(3, 2)),
    "flipped": np.flip(np.arange(6.0).reshape(3, 2)),
    "read-only": _read_only(),
    "torch": torch.arange(6.0).view(3, 2),
    "parameter": torch.nn.Parameter(torch.arange(6.0).view(3, 2)),
}


@pytest.mark.parametrize("array", DIRECT.values(), ids=DIRECT)
def test_an_array_fills_a_variable_of_its_very_shape(array):
    """A NumPy array or torch tensor gives its values to a variable of its shape, and is refused by any other."""
    torch.set_warn_always(True)  # some of torch's warnings come once a process
    try:
        assert torch.equal(drawn(kinit.get(array), (3, 2)), K.get(array)((3, 2)).detach())
    finally:
        torch.set_warn_always(False)
    for shape in [(2, 3), (6,), (1, 3, 2), (4, 3, 2)]:
        with pytest.raises(ValueError, match="shape"):
            K.get(array)(shape)
        with pytest.raises(ValueError, match=r"array has shape \(3, 2\)"):
            drawn(kinit.get(array), shape)


@pytest.mark.parametrize("array", [np.array([1.0, np.nan]), np.array([1j, 0]), np.array(["a", "b"])], ids=str)
def test_an_array_of_no_finite_numbers_is_refused(array):
    """NaN, complex numbers and text in an array are refused, and the tensor keeps its values."""
    tensor = torch.ones(2)
    with pytest.raises((ValueError, TypeError), match=r"finite real numbers|numpy\.str_"):
        kinit.get(array)(tensor)
    assert torch.equal(tensor, torch.ones(2))


def config_of(name, **config):
    return {"class_name": name, "config": config}


BAD = {
    "bool": (True, "True of type bool"),
    "list": ([1], r"\[1\] of type list"),
    "object": (object(), "of type object: give a Keras name such as 'he_normal'"),
    "bytes": (b"he_normal", "of type bytes"),
    "complex": (1j, "of type complex"),
    "foreign class": (torch.nn.Linear, "Linear"),
    "skip": (kinit.skip, "kinit.skip"),
    "nan": (math.nan, "must be finite, got nan"),
    "inf": (math.inf, "must be finite, got inf"),
    "no class_name": ({"config": {}}, "'class_name'"),
    "number as class_name": ({"class_name": 3}, "'class_name'"),
    "unknown class": (config_of("HeNormall"), "'HeNormall'. Did you mean 'HeNormal'"),
    "unknown key": (config_of("RandomNormal", std=1.0), "'std'.* Did you mean 'stddev'"),
    "key of another": (config_of("Zeros", value=1.0), "'value' in the config of Zeros"),
    "seed of no chance": (config_of("Zeros", seed=None), "'seed' in the config of Zeros"),
    "axes of orthogonal": (config_of("Orthogonal", input_axes=[0]), "'input_axes'"),
    "text as config": ({"class_name": "HeNormal", "config": "x"}, "HeNormal.*'x'"),
    "int as axes": (config_of("HeNormal", input_axes=0, output_axes=1), "input_axes"),
    "unknown keyword": (partial(kinit.trunc_normal_, sdt=0.1), "'sdt'.* Did you mean 'std'"),
    "scale of a name": (partial(kinit.he_normal_, scale=2.0), "he_normal_ takes no argument 'scale'"),
    "by position": (partial(kinit.constant_, 0.5), "by name"),
}


@pytest.mark.parametrize(("identifier", "says"), BAD.values(), ids=BAD)
def test_what_is_no_initializer_is_refused_with_the_way_out(identifier, says):
    """A wrong type, class, key or argument is an error that shows it, with near misses where there are any."""
    with pytest.raises((ValueError, TypeError), match=says):
        kinit.get(identifier)


def test_a_stranger_with_a_keras_name_is_refused():
    """A user's own class called HeNormal is not Keras': no law is guessed from its name, nor from its parent's."""

    class HeNormal(K.Initializer):
        def get_config(self):
            return {}

    class Mine(K.GlorotUniform):
        pass

    registered = {"module": "my.module", "class_name": "HeNormal", "config": {}, "registered_name": "my>HeNormal"}
    for stranger in (HeNormal, HeNormal(), Mine, Mine(), registered):
        with pytest.raises(ValueError, match=r"HeNormal|Mine"):
            kinit.get(stranger)


# --- serialize -------------------------------------------------------------------------------------------------------

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


# --- recipes as JSON -------------------------------------------------------------------------------------------------

RECIPES = {
    "name": ("he_normal", (4, 3)),
    "keywords": (partial(kinit.variance_scaling_, scale=2.0, mode="fan_out", distribution="uniform"), (4, 3)),
    "axes": (partial(kinit.he_uniform_, fans=((0,), (1, 2))), (4, 3, 2)),
    "fans": (partial(kinit.he_uniform_, fans=(7, 9)), (4, 3)),
    "one-sided": (partial(kinit.trunc_normal_, lower=8, upper=math.inf), (5,)),
    "NumPy scalars": (partial(kinit.random_normal_, mean=np.float32(0.5), std=np.float64(0.02)), (5,)),
    "NumPy fans": (partial(kinit.he_normal_, fans=(np.int64(7), np.int64(9))), (4, 3)),
    "number": (0.1, (3,)),
    "numpy": (np.arange(6).reshape(2, 3), (2, 3)),
    "flipped": (np.arange(3.0)[::-1], (3,)),
    "bool": (np.array([True, False]), (2,)),
    "bfloat16": (torch.tensor([1.0, 2.0], dtype=torch.bfloat16), (2,)),
    "nested list": (partial(kinit.constant_, value=[[1.0], [2.0]]), (2, 2)),
    "window": (partial(kinit.stft_, window=np.array([0.5, 1.0, 2.0])), (4, 1, 3)),
}


@pytest.mark.parametrize(("initializer", "shape"), RECIPES.values(), ids=RECIPES)
def test_a_recipe_survives_json(initializer, shape):
    """A recipe read back from standard JSON, which has no infinity, is equal and draws the same."""
    kept = recipe(initializer)
    read = Recipe.from_dict(json.loads(json.dumps(kept.to_dict(), allow_nan=False)))
    assert read == kept
    assert read.to_dict() == kept.to_dict()
    first, second = torch.empty(shape), torch.empty(shape)
    kept(first, generator=torch.Generator().manual_seed(1))
    read(second, generator=torch.Generator().manual_seed(1))
    assert torch.equal(first, second)


def test_recipes_differ_where_their_laws_differ():
    """Recipes are unequal for another function, another argument, another array, or an array against a number."""
    arrays = [np.ones(2), np.zeros(2), partial(kinit.constant_, value=np.ones(2))]
    different = ["he_normal", "he_uniform", 1.0, 2.0, *arrays, "orthogonal", partial(kinit.orthogonal_, gain=2.0)]
    for i, one in enumerate(different):
        assert [recipe(one) == recipe(other) for other in different] == [i == j for j in range(len(different))]


def test_only_our_own_recipes_become_json():
    """A function of somebody else's is not written to JSON, and an unknown name is not read from it."""
    with pytest.raises(ValueError, match=r"torch\.nn\.init\.normal_.*cannot be written to JSON"):
        recipe(torch.nn.init.normal_).to_dict()
    with pytest.raises(ValueError, match="cannot be written to JSON"):
        recipe(partial(kinit.he_normal_, generator=torch.Generator())).to_dict()
    with pytest.raises(ValueError, match=r"'he_norml_'\. Did you mean 'he_normal_'"):
        Recipe.from_dict({"name": "he_norml_", "arguments": {}})
