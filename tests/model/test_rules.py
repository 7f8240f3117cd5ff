"""A rule's key says which parameters it is for, and its value what they get."""

import functools
import inspect
import math
import re
from dataclasses import dataclass

import keras
import numpy as np
import pytest
import torch
from keras import layers as kl
from torch import nn

import torch_kinit as kinit
from tests.support.models import Child, Grandchild, lineage


def initializers(model, rules=None, **options):
    return {s.name: str(s.initializer) if s.initializer else "skip" for s in kinit.plan(model, rules, **options)}


def changed(model, rules, **options):
    """The initializers that are not Keras' defaults, by name."""
    before = initializers(model, **options)
    return {name: value for name, value in initializers(model, rules, **options).items() if value != before[name]}


BODY = ("body.0.weight", "body.1.weight", "body.2.weight")
KEYS = {
    "class": ({nn.Conv2d: 0.25}, ["stem.weight"]),
    "class, with subclasses of subclasses": ({nn.Linear: 0.25}, [*BODY, "head.weight"]),
    "subclass, without its base": ({Child: 0.25}, BODY[1:]),
    "sub-subclass alone": ({Grandchild: 0.25}, BODY[2:]),
    "tuple of classes": ({(nn.Conv2d, Child): 0.25}, ["stem.weight", *BODY[1:]]),
    "tuple with a class that is not there": ({(nn.Conv2d, nn.Conv3d): 0.25}, ["stem.weight"]),
    "role of all layers": ({"kernel": 0.25}, ["stem.weight", *BODY, "read.weight_ih_l0", "head.weight"]),
    "role by Keras' argument": (
        {"bias_initializer": 0.25},
        ["stem.bias", *(b[:-6] + "bias" for b in BODY), "read.bias_ih_l0", "head.bias"],
    ),
    "role of a statistic": ({"moving_mean": 0.25}, ["norm.running_mean"]),
    "parameter name": ({"head.bias": 0.25}, ["head.bias"]),
    "module path": ({"head": 0.25}, ["head.weight"]),
    "glob over names": (
        {"*.bias": 0.25},
        ["stem.bias", "norm.bias", *(b[:-6] + "bias" for b in BODY), "head.bias"],
    ),
    "glob over module paths": ({"body.?": 0.25}, BODY),
    "glob with a set": ({"body.[02]": 0.25}, [BODY[0], BODY[2]]),
    "star across dots": ({"b*weight": 0.25}, BODY),
    "regex over names": ({re.compile(r"body\.[12]\.bias"): 0.25}, ["body.1.bias", "body.2.bias"]),
    "regex over module paths": ({re.compile(r"body\.\d|head"): 0.25}, [*BODY, "head.weight"]),
    "regex, in full": (
        {re.compile("head"): 0.25, re.compile("head.bias"): 0.25},
        ["head.weight", "head.bias"],
    ),
}


@pytest.mark.parametrize(("rules", "names"), KEYS.values(), ids=KEYS)
def test_key(rules, names):
    """A key matches exactly the modules of its class, or the names and paths of its glob or regex."""
    assert changed(lineage(), rules) == dict.fromkeys(names, "constant(0.25)")


class Named(nn.Module):
    """A module with a parameter and a layer that are called as roles are."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(2))
        self.kernel = nn.Linear(3, 2)
        self.head = nn.Linear(2, 2)


def test_a_name_at_the_top_wins_over_a_role():
    """A parameter or module of a role's name is what the key means, and the plan says which of the two it was."""
    plan = kinit.plan(Named(), {"bias": 0.25, "kernel": "he_normal"})
    assert {step.name: step.rule for step in plan if step.rule != "Keras default"} == {
        "bias": "'bias'",
        "kernel.weight": "'kernel'",
    }
    plan = kinit.plan(nn.Sequential(nn.Linear(3, 2)), {"bias": 0.25, "kernel_initializer": "he_normal"})
    assert [step.rule for step in plan] == ["role 'kernel'", "role 'bias'"]


def test_rules_by_role_take_their_place_in_the_order():
    """A role wins over rules before it and yields to those after it; `skip` and arrays in Keras' shape will do."""
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(3, 2), nn.BatchNorm1d(2))
    rules = {"0": "ones", "kernel": np.full((3, 2), 0.25), "1": "he_normal", "bias": kinit.skip, "gamma": 2}
    assert changed(model, rules) == {
        "0.weight": "array(array of shape (3, 2))",
        "1.weight": "he_normal",
        "0.bias": "skip",
        "1.bias": "skip",
        "2.weight": "constant(2)",
    }


MAIN = {
    "LSTM": (nn.LSTM(4, 4), ["weight_ih_l0"]),
    "MultiheadAttention": (nn.MultiheadAttention(4, 2), ["in_proj_weight", "out_proj.weight"]),
    "BatchNorm": (nn.BatchNorm1d(4), ["weight"]),
    "Embedding": (nn.Embedding(4, 4), ["weight"]),
    "PReLU": (nn.PReLU(), ["weight"]),
}


@pytest.mark.parametrize(("layer", "names"), MAIN.values(), ids=MAIN)
def test_bare_value_sets_the_main_weight(layer, names):
    """A bare value on a class sets the role of the layer's main weight and no other."""
    assert changed(layer, {type(layer): 0.25}) == dict.fromkeys(names, "constant(0.25)")


ROLES = {  # role, its argument in Keras, the Keras layer that has it, a torch layer, the tensors that play it
    "kernel": ("kernel_initializer", kl.Dense, nn.Linear(4, 4), ["weight"]),
    "recurrent_kernel": ("recurrent_initializer", kl.GRU, nn.GRU(4, 4), ["weight_hh_l0"]),
    "depthwise_kernel": ("depthwise_initializer", kl.DepthwiseConv2D, nn.Conv2d(4, 8, 3, groups=4), ["weight"]),
    "embeddings": ("embeddings_initializer", kl.Embedding, nn.Embedding(4, 4), ["weight"]),
    "bias": ("bias_initializer", kl.GRU, nn.GRU(4, 4), ["bias_ih_l0", "bias_hh_l0"]),
    "gamma": ("gamma_initializer", kl.BatchNormalization, nn.BatchNorm1d(4), ["weight"]),
    "beta": ("beta_initializer", kl.BatchNormalization, nn.BatchNorm1d(4), ["bias"]),
    "moving_mean": ("moving_mean_initializer", kl.BatchNormalization, nn.BatchNorm1d(4), ["running_mean"]),
    "moving_variance": ("moving_variance_initializer", kl.BatchNormalization, nn.BatchNorm1d(4), ["running_var"]),
    "alpha": ("alpha_initializer", kl.PReLU, nn.PReLU(), ["weight"]),
}


@pytest.mark.parametrize("role", ROLES)
def test_role(role):
    """A role, by its own name or by that of Keras' argument for it, sets just the tensors that play it."""
    argument, keras_layer, layer, names = ROLES[role]
    assert argument in inspect.signature(keras_layer).parameters
    expected = dict.fromkeys(names, "constant(0.25)")
    assert changed(layer, {type(layer): {role: 0.25}}) == expected
    assert changed(layer, {type(layer): {argument: 0.25}}) == expected
    assert changed(layer, {"": {argument: 0.25}}) == expected


def test_kernel_of_a_depthwise_convolution():
    """A depthwise convolution's weight is also its kernel, as the variable is called in Keras."""
    layer = nn.Conv2d(4, 4, 3, groups=4)
    assert changed(layer, {nn.Conv2d: {"kernel": "he_normal"}}) == {"weight": "he_normal"}


ORDER = {
    "role by role": (
        {nn.Linear: {"kernel": "he_normal", "bias": "ones"}, "head": {"kernel": "lecun_normal"}},
        {"head.weight": "lecun_normal", "head.bias": "ones"},
    ),
    "later rule, wider": (
        {"head": {"kernel": "lecun_normal", "bias": 2.0}, nn.Linear: {"kernel": "he_normal"}},
        {"head.weight": "he_normal", "head.bias": "constant(2)"},
    ),
    "bare after roles": (
        {"head": {"kernel": "he_normal", "bias": "ones"}, "head.*": 3},
        {"head.weight": "constant(3)", "head.bias": "constant(3)"},
    ),
    "skip, then not": ({"head*": kinit.skip, "head": "he_normal"}, {"head.weight": "he_normal", "head.bias": "skip"}),
    "not, then skip": ({"head": "he_normal", nn.Linear: kinit.skip}, {"head.weight": "skip", "head.bias": "skip"}),
}


@pytest.mark.parametrize(("rules", "head"), ORDER.values(), ids=ORDER)
def test_the_last_match_wins(rules, head):
    """Of the rules that speak of a role, the last one decides it and leaves the other roles alone."""
    model = nn.ModuleDict({"head": nn.Linear(8, 2)})
    assert initializers(model, rules) == head


BUFFERS = {
    "role": ({nn.BatchNorm2d: {"moving_mean": 2}}, {"norm.running_mean": "constant(2)"}),
    "name": ({"norm.running_var": 3}, {"norm.running_var": "constant(3)"}),
    "glob means weights": ({"norm.*": 4}, {"norm.weight": "constant(4)", "norm.bias": "constant(4)"}),
    "skip means all": (
        {nn.BatchNorm2d: "skip"},
        dict.fromkeys(
            ["norm." + n for n in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")], "skip"
        ),
    ),
    "skip of a role": ({nn.BatchNorm2d: {"moving_mean": kinit.skip}}, {"norm.running_mean": "skip"}),
}


@pytest.mark.parametrize(("rules", "expected"), BUFFERS.values(), ids=BUFFERS)
def test_buffers(rules, expected):
    """Running statistics are set by role or exact name, and left alone with their layer."""
    assert changed(lineage(), rules) == expected


VALUES = {
    "name": ("he_normal", "he_normal"),
    "class name": ("HeNormal", "he_normal"),
    "config": (
        {"class_name": "VarianceScaling", "config": {"scale": 2.0, "distribution": "normal"}},
        "variance_scaling(scale=2, distribution='truncated_normal')",
    ),
    "Keras object": (keras.initializers.RandomNormal(stddev=0.5), "random_normal(mean=0, std=0.5)"),
    "function": (kinit.he_normal_, "he_normal"),
    "partial": (functools.partial(kinit.trunc_normal_, std=0.02), "trunc_normal(std=0.02)"),
    "torch's": (nn.init.xavier_uniform_, "torch.nn.init.xavier_uniform_"),
    "int": (2, "constant(2)"),
    "float": (0.5, "constant(0.5)"),
    "numpy float64": (np.float64(0.5), "constant(0.5)"),
    "numpy float32": (np.float32(0.5), "constant(0.5)"),
}


@pytest.mark.parametrize(("value", "printed"), VALUES.values(), ids=VALUES)
def test_value(value, printed):
    """A value is a Keras name, config or object, a function, or a number."""
    assert initializers(nn.Linear(4, 4), {nn.Linear: {"kernel": value}})["weight"] == printed


def test_array_by_role_is_in_keras_shape():
    """Arrays given by role are Keras' variables: a GRU that gets them computes what Keras' GRU with them does."""
    layer, module = kl.GRU(5, return_sequences=True), nn.GRU(3, 5, batch_first=True)
    x = torch.randn(2, 4, 3)
    layer.build(x.shape)
    arrays = [np.random.default_rng(0).uniform(-1, 1, w.shape).astype("float32") for w in layer.weights]
    layer.set_weights(arrays)
    kernel, recurrent, bias = arrays
    rules = {nn.GRU: {"kernel": kernel, "recurrent_kernel": torch.tensor(recurrent)}}
    rules |= {f"bias_{way}_l0": {"bias": row} for way, row in zip(("ih", "hh"), bias, strict=True)}
    kinit.apply(module, rules)
    torch.testing.assert_close(module(x)[0], layer(x))


def test_array_by_name_is_in_torch_shape():
    """An array given to a parameter by its name is that parameter, element by element."""
    module, array = nn.GRU(3, 5), torch.randn(15, 3)
    kinit.apply(module, {"weight_ih_l0": array})
    assert torch.equal(module.weight_ih_l0, array)


FOREIGN = {
    "Linear": (lambda: nn.Linear(4, 3), ["weight"]),
    "GRU": (lambda: nn.GRU(4, 3), ["weight_ih_l0"]),
    "MultiheadAttention": (lambda: nn.MultiheadAttention(4, 2), ["in_proj_weight", "out_proj.weight"]),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4), ["weight"]),
}


@pytest.mark.parametrize(("make", "names"), FOREIGN.values(), ids=FOREIGN)
def test_foreign_callable_gets_the_parameter_itself(make, names):
    """A function that is not this package's is called once for each parameter, with that very parameter."""
    module, seen = make(), []

    def fill_(tensor):
        seen.append(tensor.zero_())

    kinit.apply(module, {type(module): {"kernel": fill_}})
    assert [id(tensor) for tensor in seen] == [id(module.get_parameter(name)) for name in names]


class Constant:
    """An initializer that is an object, as some libraries have them."""

    def __init__(self, value):
        self.value = value

    def __call__(self, tensor):
        nn.init.constant_(tensor, self.value)


@dataclass
class ConstantData(Constant):
    """The same as a dataclass, which Python does not let be hashed."""

    value: float


CALLABLES = {
    "object": Constant(3.0),
    "dataclass": ConstantData(3.0),
    "method": Constant(3.0).__call__,
    "lambda": lambda tensor: nn.init.constant_(tensor, 3.0),
    "partial of an object": functools.partial(Constant(3.0)),
    "partial": functools.partial(nn.init.constant_, val=3.0),
}


@pytest.mark.parametrize("key", [nn.Linear, "weight", re.compile("w.*")], ids=["class", "glob", "regex"])
@pytest.mark.parametrize("value", CALLABLES.values(), ids=CALLABLES)
def test_any_callable_will_do(value, key):
    """Functions, methods, partials and objects that can be called are all in-place callables."""
    module = nn.Linear(4, 3)
    kinit.apply(module, {key: value})
    assert bool((module.weight == 3).all())


def test_layout_torch_gives_the_parameter_itself():
    """With layout="torch" orthogonal_ works on torch's rows; without it on Keras' single column of a depthwise kernel.

    Oracle: nn.init.orthogonal_ makes torch's rows orthonormal; Keras flattens all axes but the last.
    """
    as_torch, as_keras = (nn.Conv2d(4, 4, 3, groups=4).double() for _ in range(2))
    kinit.apply(as_torch, {nn.Conv2d: functools.partial(kinit.orthogonal_, layout="torch")})
    kinit.apply(as_keras, {nn.Conv2d: kinit.orthogonal_})
    rows = as_torch.weight.detach().flatten(1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(float(as_keras.weight.detach().norm()), 1.0)


FANS = {  # on MultiheadAttention(12, 3), whose query kernel is (12, 3, 4) in Keras
    "numbers": ((50, 7), (50, 7)),
    "axes": (((0,), (1, 2)), (12, 12)),
    "other axes": (((0, 1), (2,)), (36, 4)),
}


@pytest.mark.parametrize(("given", "used"), FANS.values(), ids=FANS)
def test_fans_override(given, used):
    """`fans` of a partial are used in place of the layer's own; axes count as Keras' compute_fans counts them."""
    if isinstance(given[0], tuple):
        assert keras.src.initializers.random_initializers.compute_fans((12, 3, 4), *given) == used
    model = nn.MultiheadAttention(12, 3)
    step = kinit.plan(model, {"in_proj_weight": {"kernel": functools.partial(kinit.he_normal_, fans=given)}})[
        "in_proj_weight"
    ]
    assert step.fans == used
    assert step.std == pytest.approx(math.sqrt(2 / used[0]))
