"""A layout that a user registers holds for its class and the subclasses, and is refused where it is wrong."""

import keras
import pytest
import torch
from keras import layers as kl
from torch import nn

import torch_kinit as kinit
from tests.support.keras_twins import Twin, carried, check_same_output
from torch_kinit import Variable

pytestmark = pytest.mark.usefixtures("_keras_on_cpu")


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 6))
        self.bias = None


class Heir(Own):
    pass


def test_gpt2_conv1d(register):
    """GPT-2's Conv1D, registered as the documentation shows, is Keras' Dense; unregistered, it is refused."""
    from transformers.pytorch_utils import Conv1D

    with pytest.raises(kinit.UncoveredParameterError, match="of Conv1D"):
        kinit.plan(Conv1D(7, 5))
    register(Conv1D, lambda m: [Variable("kernel", "weight", "keras"), Variable("bias", "bias")])
    twin = Twin("", lambda: Conv1D(7, 5), lambda: [kl.Dense(7)], ((3, 5),))
    check_same_output(twin, *carried(twin))
    assert kinit.plan(Conv1D(7, 5))["weight"].fans == (5, 7)


def test_subclasses_inherit_the_nearest_layout(register):
    """A subclass has its base's layout until it is registered itself, and that leaves the base as it was."""
    register(Own, lambda m: [Variable("kernel", "weight"), Variable("bias", "bias")])
    assert kinit.plan(Heir())["weight"].fans == (6, 4)
    register(Heir, lambda m: [Variable("kernel", "weight", "keras")])
    assert (kinit.plan(Heir())["weight"].fans, kinit.plan(Own())["weight"].fans) == ((4, 6), (6, 4))


def test_registering_again_replaces(register):
    """A second registration takes the place of the first, and of a built-in one."""
    register(nn.Linear, lambda m: (Variable("gain", "weight", "keras", default="he_normal"), Variable("bias", "bias")))
    first = kinit.plan(nn.Linear(5, 7))["weight"]
    assert (first.role, first.fans, str(first.initializer)) == ("gain", (7, 5), "he_normal")
    register(nn.Linear, lambda m: (Variable("kernel", "weight"), Variable("bias", "bias")))
    again = kinit.plan(nn.Linear(5, 7))["weight"]
    assert (again.role, again.fans, str(again.initializer)) == ("kernel", (5, 7), "glorot_uniform")


@pytest.mark.parametrize("cls", [int, "Linear", nn.Linear(2, 2), None], ids=repr)
def test_only_module_classes_are_registered(register, cls):
    """A layout for what is no module class is refused with what came."""
    with pytest.raises(TypeError, match=r"`cls` must be a subclass of torch\.nn\.Module, got"):
        register(cls, lambda m: [])


def test_only_functions_are_layouts(register):
    """A list of variables where the function that makes it belongs is refused."""
    with pytest.raises(TypeError, match="`layout` must be a function from a module to its variables, got"):
        register(Own, [Variable("kernel", "weight")])


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        pytest.param({"tensor": "weihgt"}, "weihgt", id="no such tensor"),
        pytest.param({"tensor": "inner.weight"}, r"inner\.weight", id="no such child"),
        pytest.param({"layout": "kears"}, "kears", id="unknown layout"),
        pytest.param({"layout": lambda w: w.t().contiguous()}, "weight", id="a copy, not a view"),
        pytest.param({"layout": lambda w: w.t()[:3]}, "weight", id="a view of a part"),
        pytest.param({"blocks": 3}, "weight", id="blocks of unequal size"),
        pytest.param({"swapped": True}, "weight", id="four rows in three blocks"),
        pytest.param({"default": "glorot"}, "glorot", id="unknown default"),
        pytest.param({"fans": (2,)}, "fans", id="one fan"),
    ],
)
def test_wrong_variable_is_refused(register, variable, message):
    """A variable that could not reach each element of a tensor there is a ValueError, before anything changes."""
    register(Own, lambda m: [Variable(**{"role": "kernel", "tensor": "weight", **variable})])
    module = Own()
    with pytest.raises(ValueError, match=message):
        kinit.apply(module)
    assert not module.weight.any()


def test_layout_of_something_else_is_refused(register):
    """A layout that gives names where Variables belong is a TypeError that says so."""
    register(Own, lambda m: ["weight"])
    with pytest.raises(TypeError, match="Variable"):
        kinit.plan(Own())


def test_variable_of_no_blocks():
    """A variable has one block or more."""
    with pytest.raises(ValueError, match="`blocks` must be 1 or more, got 0"):
        Variable("kernel", "weight", blocks=0)


class OwnGRU(nn.GRU):
    """A user's subclass."""


class OwnAttention(nn.MultiheadAttention):
    """A user's subclass."""


@pytest.mark.parametrize(
    ("module", "layer", "shapes"),
    [
        (lambda: OwnGRU(4, 6), lambda: keras.layers.GRU(6), [(None, 5, 4)]),
        (lambda: OwnAttention(8, 2), lambda: keras.layers.MultiHeadAttention(2, 4), [(None, 5, 8)] * 2),
    ],
    ids=["GRU", "MultiheadAttention"],
)
def test_a_subclass_has_the_weights_of_its_base_in_keras(module, layer, shapes):
    """Its arrays are those of the Keras layer, in its order: one bias of two rows, each kernel with its bias."""
    twin = layer()
    twin.build(*shapes)
    assert [array.shape for array in kinit.to_keras(module())] == [tuple(w.shape) for w in twin.weights]


def test_a_registered_layout_keeps_the_twin_in_keras(register):
    """A subclass, or the class itself, with a layout of its own still stands for its Keras layer and its draws."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    expected = [step.seeds for step in kinit.replay_keras(model, 0, backend="jax")]
    register(nn.Linear, lambda m: [Variable("kernel", "weight"), Variable("bias", "bias")])
    assert [step.seeds for step in kinit.replay_keras(model, 0, backend="jax")] == expected
    model[1].__class__ = type("OwnLinear", (nn.Linear,), {})
    register(type(model[1]), lambda m: [Variable("kernel", "weight"), Variable("bias", "bias")])
    assert [step.seeds for step in kinit.replay_keras(model, 0, backend="jax")] == expected
