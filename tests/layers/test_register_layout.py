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


@pytest.mark.parametrize("layout", [[Variable("kernel", "weight")], dict, None], ids=["list", "dict", "None"])
def test_only_functions_and_classes_of_modules_are_layouts(register, layout):
    """A list of variables where the function that makes it belongs is refused, and a class of something else."""
    with pytest.raises(TypeError, match="`layout` must be a function from a module to its variables, or a class, got"):
        register(Own, layout)


class OwnLinear(nn.Module):
    """A dense layer of its own, as libraries of transformers have them."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.in_features, self.out_features = inputs, outputs
        self.weight = nn.Parameter(torch.empty(outputs, inputs))


class OwnNorm(nn.Module):
    """An RMS norm of its own, which does not say what it normalizes."""

    def __init__(self, features):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(features))


def test_a_class_is_stored_as_another(register):
    """A class registered as another has its variables, as far as it holds them; subclasses inherit."""
    register(OwnLinear, nn.Linear)
    register(OwnNorm, nn.LayerNorm)
    model = nn.Sequential(OwnLinear(6, 4), type("Heir", (OwnLinear,), {})(4, 3), OwnNorm(3))
    plan = kinit.plan(model, {"0": "he_normal"})
    rows = [(step.name, step.role, str(step.initializer), step.fans) for step in plan]
    assert rows == [
        ("0.weight", "kernel", "he_normal", (6, 4)),
        ("1.weight", "kernel", "glorot_uniform", (4, 3)),
        ("2.weight", "gamma", "ones", None),
    ]


def test_a_class_stored_as_another_stands_for_its_keras_layer(register):
    """Replay gives it the other's draws where its sizes are told, and nothing where the weights are without chance."""
    torchs = nn.Sequential(nn.Linear(6, 4, bias=False), nn.RMSNorm(4), nn.Linear(4, 3, bias=False))
    kinit.replay_keras(torchs, 1, backend="jax")
    register(OwnLinear, nn.Linear)
    register(OwnNorm, nn.RMSNorm)
    own = nn.Sequential(OwnLinear(6, 4), OwnNorm(4), OwnLinear(4, 3))
    kinit.replay_keras(own, 1, backend="jax")
    assert all(map(torch.equal, own.parameters(), torchs.parameters()))


def test_replay_of_a_class_that_does_not_tell_its_sizes(register):
    """Weights with chance, of a class without the attributes that the Keras layer is made of, ask for a twin."""
    register(Own, nn.Linear)
    with pytest.raises(ValueError, match=r"No Keras layer draws weight of Own.*twin\('Dense', 'its.path'\)"):
        kinit.replay_keras(Own(), 1, backend="jax")


@pytest.mark.parametrize("other", [nn.Dropout, nn.Sequential, OwnNorm], ids=lambda cls: cls.__name__)
def test_only_classes_with_a_layout_are_followed(register, other):
    """A class of which no layout is known is refused when it is registered."""
    with pytest.raises(ValueError, match=rf"`layout` is {other.__name__}, of which no layout is known; give a class"):
        register(Own, other)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (nn.Conv2d, "Own is registered to store its variables as Conv2d, whose layout reads `groups`, which it lacks"),
        (nn.LSTM, "as LSTM, whose layout reads `bidirectional`, which it lacks"),
        (nn.MultiheadAttention, "as MultiheadAttention, whose layout reads `embed_dim`, which it lacks"),
        (nn.modules.batchnorm.BatchNorm1d, None),
    ],
    ids=["Conv2d", "LSTM", "MultiheadAttention", "BatchNorm1d"],
)
def test_what_the_other_layout_reads_must_be_there(register, other, message):
    """An attribute that the layout of the other class reads, and the module lacks, is named."""
    register(Own, other)
    if message is None:
        assert [step.role for step in kinit.plan(Own())] == ["gamma"]
    else:
        with pytest.raises(ValueError, match=message):
            kinit.plan(Own())


def test_the_main_weight_of_the_other_layout_must_be_there(register):
    """A class without the main weight of the one that it is registered as is refused when it is planned."""
    register(nn.ParameterDict, nn.Linear)
    with pytest.raises(ValueError, match=r"ParameterDict is .*Linear, whose main weight is `weight`, which it lacks"):
        kinit.plan(nn.ParameterDict({"kernel": torch.zeros(2, 3)}))


def test_two_classes_may_be_stored_as_each_other(register):
    """The layout that is followed is that of the moment, so that registering both ways ends."""
    register(OwnLinear, nn.Linear)
    register(Own, OwnLinear)
    register(OwnLinear, Own)
    assert kinit.plan(OwnLinear(6, 4))["weight"].fans == kinit.plan(Own())["weight"].fans == (6, 4)


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
