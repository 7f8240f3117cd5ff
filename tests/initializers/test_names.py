"""`get` takes what Keras takes for an initializer, a name, a class or an object, and numbers, arrays and functions."""

import functools
import math
import string
from dataclasses import dataclass

import keras
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import torch_kinit as kinit
from tests.support.keras_initializers import CONCRETE, drawn

K = keras.initializers
partial = functools.partial


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


@pytest.mark.parametrize(
    "name",
    ["Initializer", "initializer", K.Initializer, K.Initializer()],
    ids=["name", "lower-case name", "class", "instance"],
)
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
    for function in (kinit.he_normal_, kinit.trunc_normal_, kinit.unit_forget_bias_):
        assert kinit.get(function.__name__) is function


NO_NAMES = ["xavier_uniform", "lecun", "HE_NORMAL", "", "V2", "function", "keras.initializers.HeNormal"]


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
