"""Thousands of rules on thousands of parameters: the work grows with their number, not with its square."""

import re
import sys
import time

import pytest
import torch
from torch import nn

import torch_kinit as kinit


class Layer(nn.Module):
    """Two parameters, one of them with a name of its own."""

    def __init__(self, i):
        super().__init__()
        setattr(self, f"w{i}", nn.Parameter(torch.empty(1)))
        self.scale = nn.Parameter(torch.empty(1))


def layers(n):
    return nn.ModuleDict({"layers": nn.ModuleList([Layer(i) for i in range(n)])})


def linears(n):
    """Linear layers, each tenth of a class of its own; they share the others."""
    classes = [type(f"Linear{i}", (nn.Linear,), {}) for i in range(10)]
    return nn.ModuleDict({"layers": nn.ModuleList([classes[i % 10](1, 1) for i in range(n)])})


# The model, and the rules for one of its layers.
KEYS = {
    "exact names": (layers, lambda model, i: {f"layers.{i}.w{i}": "ones"}),
    "modules' paths": (linears, lambda model, i: {f"layers.{i}": "ones"}),
    "globs with one beginning": (layers, lambda model, i: {f"layers.{i}.*": "ones"}),
    "globs with one ending": (layers, lambda model, i: {f"*.w{i}": "ones"}),
    "classes before names": (linears, lambda model, i: {type(model["layers"][i]): "zeros", f"layers.{i}.bias": "ones"}),
}
every_key = pytest.mark.parametrize(("make", "rule"), KEYS.values(), ids=KEYS)


def task(make, rule, n):
    """Planning a model of 2n parameters by n rules or, with classes, n + 10."""
    model, rules = make(n), {}
    for i in range(n):
        rules |= rule(model, i)
    return lambda: kinit.plan(model, rules, on_uncovered="keep")


def calls(function):
    """How many functions, of Python and of C, a call calls."""
    count = 0

    def note(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    re.purge()  # of the patterns that another call has compiled
    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(before)
    return count


@every_key
def test_work_grows_with_the_number_of_rules(make, rule):
    """Four times the rules and parameters take four times the calls, give or take a fifth."""
    assert calls(task(make, rule, 400)) < 1.2 * 4 * calls(task(make, rule, 100))


def test_the_count_sees_work_that_grows_faster():
    """Comparing each number with each takes sixteen times the calls for four times the numbers."""
    assert calls(lambda: [abs(i - j) for i in range(400) for j in range(400)]) > 15 * calls(
        lambda: [abs(i - j) for i in range(100) for j in range(100)]
    )


@pytest.mark.slow
@pytest.mark.xdist_group("serial")
@every_key
def test_two_thousand_rules_take_no_time(make, rule):
    """2,000 rules on 4,000 parameters take under a second; three, where others use the processor too."""
    planning = task(make, rule, 2000)
    begin = time.process_time()
    planning()
    assert time.process_time() - begin < 3
