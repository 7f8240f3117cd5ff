"""Wrong inputs, clumsy and hostile: each is one error that says what was meant, in a few lines, and changes nothing."""

import functools
import math
import re

import numpy as np
import pytest
import torch
from torch import nn

import torch_kinit as kinit
from tests.support.fingerprint import fingerprint
from tests.support.models import lineage

partial = functools.partial
LONG = list(range(100_000))


class Loud:
    """An object that says more than anybody wants to read."""

    def __repr__(self):
        return "loud " * 100_000


class Mute:
    """An object that cannot even be shown."""

    def __repr__(self):
        raise RuntimeError("no words")


def with_rules(rules):
    return lambda model: kinit.apply(model, rules)


def with_arguments(**arguments):
    return lambda model: kinit.apply(model, **arguments)


def nested():
    endless = {}
    endless["kernel"] = endless
    return endless


MANY = nn.ModuleList(nn.Linear(2, 2) for _ in range(300))
ON_META = nn.ModuleList(nn.Linear(2, 2, device="meta") for _ in range(300))


ROWS = {
    # the model
    "no model": (lambda m: kinit.apply(None), TypeError, "`model` must be a torch.nn.Module, got None"),
    "a class": (lambda m: kinit.plan(nn.Linear), TypeError, "got <class 'torch.nn.modules.linear.Linear'> of type typ"),
    "a state_dict": (lambda m: kinit.apply(m.state_dict()), TypeError, "of type OrderedDict"),
    "a list of models": (lambda m: kinit.apply([MANY] * 50), TypeError, "got [ModuleList(...), ModuleList(...), "),
    "lazy layers": (
        lambda m: kinit.plan(nn.Sequential(*(nn.LazyLinear(2) for _ in range(300)))), ValueError, "594 more are lazy"
    ),
    "a model on meta": (lambda m: kinit.apply(ON_META), ValueError, "*.weight: 300 tensors of Linear"),
    # rules
    "rules as text": (with_rules("he_normal"), TypeError, "`rules` must be a dict of rules, got 'he_normal'"),
    "rules as pairs": (with_rules([("head", "zeros")] * 9), TypeError, "`rules` must be a dict of rules, got [("),
    "mute rules": (with_rules(Mute()), TypeError, "`rules` must be a dict of rules, got <Mute"),
    "another's state_dict": (with_rules(MANY.state_dict()), ValueError, "'0.weight' matches nothing."),
    "a module as key": (with_rules({nn.Linear(8, 2): "zeros"}), TypeError, "A rule's key must be a module class, a"),
    "Parameter as key": (with_rules({nn.Parameter: "zeros"}), TypeError, "got <class 'torch.nn.parameter.Parameter'>"),
    "a function as key": (with_rules({nn.init.zeros_: "zeros"}), TypeError, "got <function zeros_"),
    "a tuple of names": (with_rules({("head", "stem"): "zeros"}), TypeError, "got ('head', 'stem') of type tuple"),
    "bytes as pattern": (with_rules({re.compile(b"head"): "zeros"}), TypeError, "got re.compile(b'head')"),
    "a class by name": (with_rules({"nn.Linear": "zeros"}), ValueError, "give the class itself, such as torch.nn.Line"),
    "a class as in a file": (with_rules({"torch.nn:Linear": "zeros"}), ValueError, "That is the name of a class"),
    "an index": (with_rules({"body[0]": "zeros"}), ValueError, "'body[0]' matches nothing. Did you mean 'body.0'"),
    "a slash": (with_rules({"head/weight": "zeros"}), ValueError, "Did you mean 'head.weight'"),
    "a wrapper's name": (with_rules({"module.head.bias": "zeros"}), ValueError, "Did you mean 'head.bias'"),
    "an endless key": (with_rules({"x" * 100_000: "zeros"}), ValueError, "xxx' matches nothing."),
    "no key": (with_rules({"": "zeros"}), ValueError, "'' matches nothing."),
    "torch's role": (with_rules({"head": {"weight": "zeros"}}), ValueError, "Its weight is the kernel."),
    "a number as role": (with_rules({"head": {0: "zeros"}}), TypeError, "a role must be a string such as 'kernel', go"),
    # values
    "a long list": (with_rules({"head": LONG}), ValueError, "Could not interpret the initializer [0, 1, 2, ...]"),
    "a huge tensor": (with_rules({"head": torch.zeros(1000, 1000)}), ValueError, "has shape (1000, 1000), Keras'"),
    "an array with NaN": (with_rules({"head": np.full((8, 2), np.nan)}), ValueError, "must hold finite real numbers"),
    "a loud object": (with_rules({"head": Loud()}), ValueError, "Could not interpret the initializer loud loud"),
    "a mute object": (with_rules({"head": Mute()}), ValueError, "Could not interpret the initializer <Mute"),
    "a layer": (with_rules({"head": nn.Linear(8, 2)}), ValueError, "Could not interpret the initializer Linear(...)"),
    "a dict in itself": (with_rules({"head": nested()}), ValueError, "A Keras config has a 'class_name', got {'kernel"),
    "nothing": (with_rules({"head": None}), ValueError, "None is no initializer; write"),
    "true": (with_rules({"head": True}), ValueError, "Could not interpret the initializer True of type bool"),
    "a number beyond": (with_rules({"head": 10**400}), ValueError, "`value` must fit in a float"),
    "too large for float32": (with_rules({"head": 1e39}), ValueError, "`value` 1e+39 does not fit in torch.float32"),
    "torch's name": (with_rules({"head": "kaiming_normal_"}), ValueError, "kaiming_normal_ is not"),
    "Keras' keyword": (with_rules({"head": "RandomNormal(stddev=1)"}), TypeError, "Keras' `stddev` is `std` here."),
    "by position": (with_rules({"head": "trunc_normal(0.02)"}), ValueError, "An initializer's arguments go in by name"),
    "code": (with_rules({"head": "__import__('os').system('true')"}), ValueError, "Unknown initializer"),
    "code in an argument": (with_rules({"head": "constant([x for x in y])"}), ValueError, "is no plain value"),
    "an endless name": (with_rules({"head": "constant" * 10_000}), ValueError, "Unknown initializer 'constantconstant"),
    "an endless call": (with_rules({"head": f"constant({LONG})"}), ValueError, "Could not read the initializer"),
    "negative std": (with_rules({"head": "trunc_normal(std=-1)"}), ValueError, "`std` must not be negative, got -1."),
    "std as text": (with_rules({"head": "trunc_normal(std='1')"}), TypeError, "`std` must be a number, got '1'"),
    "a mode misspelt": (
        with_rules({"head": "variance_scaling(mode='fan_inn')"}), ValueError, "got 'fan_inn'. Did you mean 'fan_in'?"
    ),
    "a long constant": (
        with_rules({"head": partial(kinit.constant_, value=LONG)}), ValueError, "of shape (100000,) does not broadcast"
    ),
    "a loud argument": (
        with_rules({"head": partial(kinit.he_normal_, fans=Loud())}), ValueError, "`fans` must be (fan_in, fan_out)"
    ),
    "a function without a tensor": (with_rules({"head": lambda: 0}), TypeError, "takes 0 positional arguments"),
    "a matrix law for a vector": (
        with_rules({"bias": "orthogonal"}), ValueError, "must have at least two axes to be orthogonal"
    ),
    "a failure halfway": (
        with_rules({"kernel": "ones", "head": lambda tensor: tensor.fill_(3) / []}), TypeError, "unsupported operand"
    ),
    # the other arguments
    "weights of no kind": (lambda m: kinit.from_keras(m, 3), TypeError, "`source` must be a path, a live Keras model "),
    "a state_dict as weights": (lambda m: kinit.from_keras(m, m.state_dict()), TypeError, "got one of type OrderedDic"),
    "seed as text": (with_arguments(seed="0"), TypeError, "`seed` must be an int, got '0'"),
    "an endless seed": (with_arguments(seed=10**5000), ValueError, "`seed` must be from 0 to 2**64 - 1, got <int>."),
    "NumPy's generator": (with_arguments(generator=np.random.default_rng(0)), TypeError, "must be a torch.Generator, "),
    "a seed as generator": (with_arguments(generator=42), TypeError, "For a seed, pass torch.Generator().manual_seed("),
    "two sources": (with_arguments(seed=1, generator=kinit.Key(1)), ValueError, "`seed` and `generator` exclude each"),
    "a prefix without seed": (with_arguments(prefix="encoder"), ValueError, "so it needs `seed` or a Key."),
    "a model as prefix": (with_arguments(prefix=MANY, seed=1), TypeError, "such as 'encoder', got ModuleList(...)."),
    "only one name": (with_arguments(only="head.weight"), TypeError, "`only` must be a list of names or a function"),
    "only parameters": (with_arguments(only=list(MANY.parameters())), TypeError, "`only` must hold names, which are"),
    "only strangers": (with_arguments(only=[f"x{i}" for i in range(10_000)]), ValueError, "and 9994 more, which no pa"),
    "an old convention": (with_arguments(convention="keras-2"), ValueError, "`convention` must be one of 'keras-3.15'"),
    "yes": (with_arguments(depthwise="yes"), TypeError, "`depthwise` must be True or False, got 'yes'."),
    "progress": (with_arguments(progress="yes"), TypeError, "`progress` must be True or False, got 'yes'."),
    "uncovered": (with_arguments(on_uncovered="ignore"), ValueError, "`on_uncovered` must be one of 'error', 'keep'"),
    # plans, devices and single tensors
    "a parameter misspelt": (lambda m: kinit.plan(m)["haed.weight"], KeyError, "Did you mean 'head.weight'"),
    "a position": (lambda m: kinit.plan(m)[0], TypeError, "for a position take `plan.steps`"),
    "another model": (lambda m: kinit.plan(MANY).apply(m), ValueError, "The model has no parameter '0.weight'"),
    "more than planned": (
        lambda m: kinit.plan(nn.ModuleDict({"head": m["head"]})).apply(m), ValueError, "and 8 more."
    ),
    "no plan": (lambda m: kinit.Plan.from_dict({"steps": LONG}), ValueError, "This is not a plan that `to_dict` wrote"),
    "no device": (lambda m: kinit.materialize(m, "gpu" * 999), ValueError, "`device` must be a device such as 'cpu'"),
    "an array to fill": (lambda m: kinit.he_normal_(np.zeros((2, 2))), TypeError, "`tensor` must be a torch.Tensor, g"),
    "a tensor as std": (
        lambda m: kinit.random_normal_(m["head"].weight, std=torch.ones(1000)), TypeError, "got <Tensor of shape (1000,"
    ),
    "bounds the wrong way": (
        lambda m: kinit.random_uniform_(m["head"].weight, 1, 0), ValueError, "`low` must be less than `high`, got low=1"
    ),
    "no number": (lambda m: kinit.orthogonal_(m["head"].weight, gain=math.nan), ValueError, "`gain` must be finite"),
    "an endless seed of Keras": (lambda m: kinit.KerasSeed(10**5000, "jax"), ValueError, "for Keras on jax, got <int>"),
    "a layout of a model": (lambda m: kinit.register_layout(MANY, list), TypeError, "`cls` must be a subclass of"),
    "endless sizes": (lambda m: kinit.flattened(m["head"], LONG), ValueError, "got (0, 1, 2, ...)."),
    "a shape of letters": (lambda m: kinit.fans("abc"), TypeError, "Expected a tensor or a shape (a sequence of ints)"),
}  # fmt: skip


def test_there_are_sixty():
    """The table has sixty rows or more, no two of which are answered alike."""
    assert len(ROWS) >= 60
    assert len({(kind, says) for _, kind, says in ROWS.values()}) == len(ROWS)


@pytest.mark.parametrize(("call", "kind", "says"), ROWS.values(), ids=ROWS)
def test_a_wrong_input_is_answered_and_changes_nothing(call, kind, says):
    """The error is of its kind, names what is wrong, fits on a screen, and leaves model and random states alone."""
    model = lineage()
    before = fingerprint(model)
    with pytest.raises(kind, match=re.escape(says)) as caught:
        call(model)
    assert isinstance(caught.value, (TypeError, ValueError, KeyError))
    assert len(str(caught.value)) < 1500
    assert caught.value.__context__ is None or caught.value.__suppress_context__  # one error, not one on top of another
    assert fingerprint(model) == before
