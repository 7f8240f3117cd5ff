"""A rule that matches nothing, or means nothing, is an error that says so."""

import functools
import math
import re

import pytest
import torch
from torch import nn

import torch_kinit as kinit
from tests.support.models import lineage

UNUSED = {
    "glob": ({"haed.weight": "zeros"}, "'haed.weight' matches nothing. Did you mean 'head.weight' or "),
    "glob, nothing near": ({"decoder*": "zeros"}, "'decoder*' matches nothing."),
    "case": ({"HEAD": "zeros"}, "'HEAD' matches nothing."),
    "class": ({nn.Conv3d: "zeros"}, "Conv3d matches nothing. Did you mean 'Conv2d'?"),
    "regex": ({re.compile("hea"): "zeros"}, "re 'hea' matches nothing. A regex must match the whole name."),
    "regex, near": ({re.compile("head.weigh"): "zeros"}, "re 'head.weigh' matches nothing. Did you mean 'head.weight'"),
    "container class": (
        {nn.Sequential: "zeros"},
        "Sequential matches nothing. body is one, but holds no parameters of its own; name its layers' classes.",
    ),
    "container path": (
        {"body": "zeros"},
        "'body' matches nothing. That module holds no parameters of its own; write 'body.*'.",
    ),
    "tuple of classes": ({(nn.GRU, nn.Conv3d): "zeros"}, "(GRU, Conv3d) matches nothing. Did you mean 'Conv2d'?"),
    "role of all layers": (
        {"depthwise_initializer": "zeros"},
        "'depthwise_initializer' matches nothing. No layer has this role; there are beta, bias, gamma, kernel, mov",
    ),
    "role of all layers, misspelt": ({"kernal": "zeros"}, "'kernal' matches nothing. Did you mean 'kernel'?"),
    "roles of a role": (
        {"kernel": {"kernel": "zeros"}},
        "'kernel' matches nothing. It is a role of all layers, so its value is an initializer, not a dict.",
    ),
    "role misspelt": (
        {"head": {"kernal": "zeros"}},
        "'head' speaks of 'kernal', which what it matches lacks; it has bias, kernel. Did you mean 'kernel'?",
    ),
    "role of another layer": (
        {nn.Linear: {"recurrent_initializer": "zeros"}},
        "Linear speaks of 'recurrent_kernel', which what it matches lacks; it has bias, kernel.",
    ),
    "role beside the name": (
        {"head.weight": {"bias": 0}},
        "'head.weight' speaks of 'bias', which what it matches lacks",
    ),
}


@pytest.mark.parametrize(("rules", "sentence"), UNUSED.values(), ids=UNUSED)
def test_unused_rule(rules, sentence):
    """A rule, or a role of one, that matches nothing is an UnusedRuleError that says what was near."""
    with pytest.raises(kinit.UnusedRuleError, match=re.escape(sentence)):
        kinit.plan(lineage(), rules)


def test_every_unused_rule_is_listed():
    """One UnusedRuleError lists all rules and roles that match nothing, and none that does."""
    rules = {rule: value for case, _ in UNUSED.values() for rule, value in case.items()} | {"norm": "ones"}
    with pytest.raises(kinit.UnusedRuleError) as caught:
        kinit.plan(lineage(), rules)
    first, *lines = str(caught.value).splitlines()
    assert first == "Rules that would do nothing:"
    assert len(lines) == len(rules) - 1
    assert "norm" not in str(caught.value)


LACKS = {
    "convolution without bias": (nn.Conv2d(2, 2, 1, bias=False), {"bias": "zeros"}, "it has kernel."),
    "statistics not kept": (
        nn.BatchNorm1d(2, track_running_stats=False),
        {"moving_mean": "zeros"},
        "it has beta, gamma.",
    ),
    "norm without weights": (nn.LayerNorm(2, elementwise_affine=False), "ones", "holds no parameters of its own"),
    "raw parameter": (nn.ParameterList([torch.zeros(2)]), {"kernel": "zeros"}, "it has no roles."),
}


@pytest.mark.parametrize(("module", "value", "sentence"), LACKS.values(), ids=LACKS)
def test_layer_without_the_role(module, value, sentence):
    """A role that the layer could have, but was built without, is an UnusedRuleError."""
    with pytest.raises(kinit.UnusedRuleError, match=sentence):
        kinit.plan(nn.Sequential(module), {type(module): value})


KEY_ERRORS = [3, None, nn.Linear(1, 1), int, (nn.Linear, int), (), re.compile(b"head")]


@pytest.mark.parametrize("key", KEY_ERRORS, ids=lambda key: type(key).__name__)
def test_wrong_key(key):
    """A key that is no module class, string or regex is a TypeError that shows it."""
    with pytest.raises(
        TypeError, match=r"A rule's key must be a module class, a tuple of them, a glob over names, .* got "
    ):
        kinit.plan(lineage(), {key: "zeros"})


VALUE_ERRORS = {
    "unknown name": ("he_norml", ValueError, "Rule Linear: Unknown initializer 'he_norml'. Did you mean 'he_normal'"),
    "None": (None, ValueError, "Rule Linear: None is no initializer; write 'glorot_uniform'"),
    "NaN": (math.nan, ValueError, "Rule Linear: `value` must be finite, got nan."),
    "bool": (True, ValueError, "Rule Linear: Could not interpret the initializer True of type bool"),
    "object": (object(), ValueError, "Rule Linear: Could not interpret the initializer <object"),
    "class": (nn.Linear, ValueError, "Rule Linear: Could not interpret the initializer <class"),
    "empty dict": ({}, ValueError, "Rule Linear is an empty dict; to leave parameters alone write kinit.skip."),
    "role not a string": ({0: "zeros"}, TypeError, "In rule Linear a role must be a string such as 'kernel', got 0."),
    "None for a role": ({"bias": None}, ValueError, "Rule Linear['bias']: None is no initializer"),
    "unknown config": ({"class_name": "HeNorml"}, ValueError, "Rule Linear: Unknown initializer 'HeNorml'."),
    "config key": (
        {"class_name": "RandomNormal", "config": {"std": 1.0}},
        ValueError,
        "Rule Linear: Unknown key 'std' in the config of RandomNormal; it may have mean, stddev.",
    ),
    "positional partial": (
        functools.partial(kinit.random_normal_, 0.0),
        ValueError,
        "Rule Linear: An initializer's arguments go in by name, got functools.partial(",
    ),
    "partial's argument": (
        functools.partial(kinit.random_normal_, stddev=1.0),
        TypeError,
        "Rule Linear: random_normal_ takes no argument 'stddev', but mean, std, layout, generator.",
    ),
    "partial's value": (
        functools.partial(kinit.random_normal_, std=-1.0),
        ValueError,
        "body.0.weight (rule Linear): `std` must not be negative, got -1.0.",
    ),
    "vector": ({"bias": "orthogonal"}, ValueError, "body.0.bias (rule Linear): `tensor` must have at least two axes"),
    "array of another shape": (
        torch.zeros(3, 8),
        ValueError,
        "body.0.weight (rule Linear): the array has shape (3, 8), Keras' variable's is (8, 8).",
    ),
}


@pytest.mark.parametrize(("value", "kind", "sentence"), VALUE_ERRORS.values(), ids=VALUE_ERRORS)
def test_wrong_value(value, kind, sentence):
    """A value that means nothing, or cannot fill what it is for, is an error that names the rule and the value."""
    with pytest.raises(kind, match=re.escape(sentence)):
        kinit.plan(lineage(), {nn.Linear: value})


ARRAYS = {
    "by role": ({nn.Linear: torch.zeros(2, 8)}, "the array has shape (2, 8), Keras' variable's is (8, 2)."),
    "by name": ({"weight": torch.zeros(8, 2)}, "the array has shape (8, 2), the parameter's is (2, 8)."),
}


@pytest.mark.parametrize(("rules", "sentence"), ARRAYS.values(), ids=ARRAYS)
def test_array_of_the_other_shape(rules, sentence):
    """An array with its axes in the order of the other convention is refused, whichever way it was given."""
    with pytest.raises(ValueError, match=re.escape(sentence)):
        kinit.plan(nn.Linear(8, 2), rules)


def test_counter_can_only_restart():
    """The integer counter of a norm takes no value but zero."""
    with pytest.raises(ValueError, match=r"norm.num_batches_tracked .*can only be 'zeros' or kinit.skip"):
        kinit.plan(lineage(), {"norm.num_batches_tracked": 7})


@pytest.mark.parametrize("rules", [["he_normal"], "he_normal", nn.Linear], ids=["list", "string", "class"])
def test_rules_are_a_dict(rules):
    """Rules that are no dict are a TypeError."""
    with pytest.raises(TypeError, match="`rules` must be a dict of rules, got "):
        kinit.plan(lineage(), rules)
