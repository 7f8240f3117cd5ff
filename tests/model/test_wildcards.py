"""A wildcard that gives random values to what starts from zeros or ones warns once; what names a thing does not."""

import re
import warnings
from functools import partial

import pytest
import torch
from torch import nn

import torch_kinit as kinit


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.PReLU(), nn.Linear(4, 2))


WARNED = {
    "weights": ({"*.weight": "he_normal"}, "'*.weight' gives random values, he_normal, ",
                "1 gamma, 1 alpha. For weights alone write {'*': {'kernel': 'he_normal'}}; if you mean it, name"),
    "everything": ({"*": "trunc_normal(std=0.02)"}, "1 gamma, 1 beta, 1 alpha, 2 bias", "'trunc_normal(std=0.02)'}}"),
    "biases": ({"*.bias": "random_normal"}, "1 beta, 2 bias", "write {'*': {'kernel': 'random_normal'}}"),
    "module path": ({"[12]": "he_normal"}, "1 gamma, 1 alpha", "{'[12]': {'gamma': 'he_normal', 'alpha': "),
    "regex": ({re.compile(r"\d\.weight"): kinit.he_normal_}, r"{re.compile('\\d\\.weight'): {'kernel': ", "1 gamma"),
    "torch's": ({"?.bias": nn.init.normal_}, "torch.nn.init.normal_", "{'?.bias': {'beta': ..., 'bias': ...}}"),
    "three": ({f"{i}*": "he_normal" for i in (1, 2, 3)}, "The wildcard '2*'", "Wildcards that do the same: 1 more."),
    "long": ({"*" * 500 + "s": partial(kinit.he_normal_, fans=(1, 2))}, "****...****", "1 beta, 2 bias"),
    "two": ({"1*": "he_normal", "3*": "he_normal"}, "The wildcard '1*'", "The wildcard '3*'"),
}  # fmt: skip


@pytest.mark.parametrize(("rules", "one", "other"), WARNED.values(), ids=WARNED)
def test_a_wildcard_that_hits_too_much(rules, one, other):
    """One warning names the pattern, how many of what it hits, and what to write; the values are as the rule says."""
    with pytest.warns(UserWarning, match="The wildcard") as caught:
        plan = kinit.plan(network(), rules)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    message = str(caught[0].message)
    assert one in message
    assert other in message
    assert len(message) < 1500
    assert len({step.rule for step in plan}) > 1


def test_what_the_warning_shows_is_silent():
    """The two rules that a warning proposes are taken without one, and do what it says."""
    with pytest.warns(UserWarning, match="name the roles") as caught:
        before = kinit.plan(network(), {"*.weight": "random_normal"})
    weights, meant = re.findall(r"write (\{.*?\}\}); .* roles: (\{.*?\}\})\.", str(caught[0].message))[0]
    namespace = {"re": re}
    assert eval(weights, namespace) == {"*": {"kernel": "random_normal"}}
    plan = kinit.plan(network(), eval(weights, namespace) | {})
    assert [step.name for step in plan if step.rule == "'*'"] == ["0.weight", "3.weight"]
    plan = kinit.plan(network(), {"kernel": "random_normal"} | eval(meant, namespace))
    assert [step.initializer for step in plan] == [step.initializer for step in before]


SILENT = {
    "class": {nn.BatchNorm2d: "random_normal"},
    "exact names": {"1.weight": "random_normal", "3.bias": "random_normal", "1.running_mean": "random_normal"},
    "module's path": {"1": "random_normal", "2": "random_uniform"},
    "roles": {"*": {"gamma": "random_normal", "bias": "random_uniform"}, "alpha": "random_normal"},
    "constants": {"*": 0.5, "*.bias": "ones", re.compile(".*weight"): nn.init.ones_},
    "weights alone": {"[03]": "he_normal", "[03].weight": "he_uniform"},
    "a later rule": {"*.weight": "he_normal", nn.BatchNorm2d: "ones", nn.PReLU: 0.25},
    "skipped": {"*": kinit.skip},
    "function of a user": {"*.weight": partial(torch.fill_, value=0.5)},
}


@pytest.mark.parametrize("rules", SILENT.values(), ids=SILENT)
def test_no_warning_without_harm(rules):
    """Classes, names and roles, and wildcards that harm nothing, do not warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kinit.plan(network(), rules)
