"""The order of a program that a functional config hides: recovered, guessed, or given by `names` and `build`."""

import keras
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers as kl

from tests.support.saved_keras import check_recovered, spectral
from torch_kinit.keras.configs import load_config
from torch_kinit.keras.saved_model import Model

pytestmark = pytest.mark.usefixtures("_keras_on_cpu")


def added():
    model = keras.Sequential()
    model.add(keras.Input((7,)))
    for make in (lambda: spectral(5), lambda: kl.Dropout(0.1), lambda: spectral(4), lambda: kl.Dense(3)):
        model.add(make())
    return model


def test_build_tells_what_the_config_does_not():
    """`model.add` after an Input builds each layer as it is made; the config is that of `Sequential([...])`."""
    check_recovered(added, "functional")
    with pytest.raises(AssertionError):
        check_recovered(added)


def made_before_called():
    inputs = keras.Input((4,))
    first, second = spectral(5), spectral(3)
    return keras.Model(inputs, second(first(inputs)))


def test_a_functional_model_whose_layers_are_made_first():
    """build="sequential" has all constructors before all builds."""
    check_recovered(made_before_called, "sequential")
    with pytest.raises(AssertionError):
        check_recovered(made_before_called)


def nested_calls():
    inputs = keras.Input((4,))
    x = spectral(4)(kl.Dense(8)(kl.Dense(16)(kl.Dense(7)(inputs))))
    return keras.Model(inputs, x)


def test_a_call_in_a_call():
    """A(B(x)) makes A before B, which automatic names of one class tell."""
    check_recovered(nested_calls)


def called_twice():
    inputs = keras.Input((4,))
    inner = keras.Model(inputs, kl.Dense(4)(inputs))
    inputs = keras.Input((4,))
    short = kl.Dense(5)(inputs)
    x = inner(inputs)
    x = kl.Dense(4)(x)
    x = inner(x)
    x = kl.SimpleRNN(5)(kl.Reshape((2, 2))(x))  # after the second call, which no number tells
    return keras.Model(inputs, kl.Add()([x, short]))


def models_made_in_the_order_not_of_their_calls():
    second = keras.Sequential([kl.Dense(4), spectral(3)])
    inputs = keras.Input((4,))
    first = keras.Model(inputs, kl.Dense(4)(inputs))
    inputs = keras.Input((4,))
    return keras.Model(inputs, second(first(inputs)))


def grouped_queries():
    inputs = keras.Input((7, 4))
    short = kl.GroupQueryAttention(2, 2, 1)(inputs, inputs)
    x = kl.GroupQueryAttention(2, 4, 1)(inputs, inputs)
    x = kl.GroupQueryAttention(2, 6, 1)(x, x)
    return keras.Model(inputs, kl.Add()([x, short]))


@pytest.mark.parametrize("make", [called_twice, models_made_in_the_order_not_of_their_calls, grouped_queries])
def test_numbers_tell_the_order(make):
    """Automatic names give the program's order where the config has another."""
    check_recovered(make)


def named_branches():
    inputs = keras.Input((4,))
    short = kl.Dense(5, name="short")(inputs)
    x = kl.Dense(6, name="long_1")(inputs)
    x = kl.Dense(5, name="long_2")(x)
    inner = keras.Sequential(
        [keras.Input((5,)), kl.SpectralNormalization(kl.Dense(3), name="spectral"), kl.Dense(2, name="last")],
        name="inner",
    )
    return keras.Model(inputs, inner(kl.Add()([x, short])))


IN_PROGRAM_ORDER = ["short", "long_1", "long_2", "inner"]


def test_names_give_the_order_that_the_config_hides():
    """Layers with names of their own are in the config's order, a guess that is told, unless `names` gives theirs."""
    model = check_recovered(named_branches, names=IN_PROGRAM_ORDER)
    with pytest.raises(AssertionError):
        check_recovered(named_branches)
    _, doubts = model.schedule()
    assert ("long_1", "short") in [doubt.layers for doubt in doubts]


def test_names_reach_into_nested_models():
    """A nested model's layers are named by their paths."""
    model = check_recovered(named_branches, "sequential", [*IN_PROGRAM_ORDER[:-1], "inner/spectral", "inner/last"])
    assert [found.name for found in model.layers][-2:] == ["inner/spectral", "inner/last"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["short", "long_1", "long_2"], "`order` lacks layers that draw seeds: 'inner/spectral', 'inner/last'."),
        (["short", "long_1", "long_3", "inner"], "`order` has 'long_3', which is no layer.*Did you mean 'long_"),
        ([*IN_PROGRAM_ORDER, "short"], "`order` has 'short' twice"),
    ],
)
def test_names_must_be_complete(names, message):
    """A missing, unknown or repeated name is refused."""
    with pytest.raises(ValueError, match=message):
        Model(load_config(named_branches().to_json())).schedule(order=names)


def test_build_is_one_of_two():
    """Another word for `build` is refused."""
    with pytest.raises(ValueError, match="`build` must be one of 'sequential', 'functional', got 'eager'"):
        Model(load_config(named_branches().to_json())).schedule("eager")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=9))
def test_any_graph_of_one_kind(edges):
    """Layers of one class, each on any one made before, keep the order of their automatic names."""

    def functional():
        tensors = [keras.Input((4,))]
        for source, other in edges:
            x = spectral(4)(tensors[source % len(tensors)])
            tensors.append(kl.Add()([x, tensors[other % len(tensors)]]))
        return keras.Model(tensors[0], tensors[1:])

    check_recovered(functional)
