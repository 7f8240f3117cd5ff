"""Errors of the user's own code pass through: of their kind, with their traceback, and a word on where they came up."""

import traceback

import pytest
import torch
from torch import nn

import torch_kinit as kinit
from tests.support.models import symmetric

TABLE = {}


def look_up(tensor):
    return TABLE[tensor]


def lookup_(tensor):
    """An initializer with a bug of its own."""
    look_up("scale")


def undecodable_(tensor):
    """An initializer whose error takes five arguments to make."""
    b"\xff".decode()


class TwoArgumentsError(Exception):
    """An error that takes two arguments and shows neither."""

    def __init__(self, first, second):
        super().__init__()


def two_(tensor):
    raise TwoArgumentsError(1, 2)


class Undecodable(nn.Module):
    """A parametrization whose way back fails from the second time on; the first is torch's, when it is registered."""

    called = False

    def forward(self, x):
        return x

    def right_inverse(self, x):
        if self.called:
            undecodable_(x)
        self.called = True
        return x


def said(error):
    return "\n".join([str(error), *getattr(error, "__notes__", ())])


def frames(error):
    return [frame.name for frame in traceback.extract_tb(error.__traceback__)]


def model():
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4))


CALLS = {
    "apply": lambda net, rules: kinit.apply(net, rules),
    "apply with a seed": lambda net, rules: kinit.apply(net, rules, seed=1),
    "a plan": lambda net, rules: kinit.plan(net, rules).apply(seed=1),
}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@every_call
def test_a_key_error_of_an_initializer_keeps_its_traceback(call):
    """It is the same error with the same frames, and says which parameter was filled."""
    with pytest.raises(KeyError) as caught:
        call(model(), {"1": lookup_})
    assert caught.value.args == ("scale",)
    assert frames(caught.value)[-2:] == ["lookup_", "look_up"]
    assert "1.weight" in said(caught.value)


@every_call
@pytest.mark.parametrize(
    ("fill", "kind"), [(undecodable_, UnicodeDecodeError), (two_, TwoArgumentsError)], ids=["Unicode", "two"]
)
def test_an_error_made_of_several_arguments_passes(call, fill, kind):
    """It is not made anew, which would fail, and says which parameter was filled."""
    with pytest.raises(kind) as caught:
        call(model(), {"1": fill})
    assert frames(caught.value)[-1] == fill.__name__
    assert "1.weight" in said(caught.value)


def test_an_error_of_a_parametrization_passes():
    """A right_inverse is the user's code too."""
    with pytest.raises(UnicodeDecodeError) as caught:
        kinit.apply(symmetric(Undecodable()), seed=1)
    assert "undecodable_" in frames(caught.value)
    assert "weight" in said(caught.value)


class Own(nn.Module):
    """A module whose layout a user registers."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 6))


FAILURES = {
    "KeyError": (lambda module: look_up("scale"), KeyError, "look_up"),
    "UnicodeDecodeError": (lambda module: undecodable_(module), UnicodeDecodeError, "undecodable_"),
    "AttributeError": (lambda module: [module.wieght], AttributeError, "__getattr__"),
    "two arguments": (two_, TwoArgumentsError, "two_"),
}


@pytest.mark.parametrize(("layout", "kind", "last"), FAILURES.values(), ids=FAILURES)
def test_an_error_of_a_layout_keeps_its_traceback(layout, kind, last, register):
    """It passes through as it is, and says of which module the layout was asked."""
    register(Own, layout)
    with pytest.raises(kind) as caught:
        kinit.plan(nn.Sequential(nn.Linear(3, 4), Own()))
    assert frames(caught.value)[-1] == last
    assert "Own" in said(caught.value)


class OfKeys(nn.Module):
    """A parameter whose view, which its layout names, fails."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 6))


def test_an_error_of_a_view_keeps_its_traceback(register):
    """The function of a Variable that shows a tensor in Keras' layout is the user's too."""
    register(OfKeys, lambda module: [kinit.Variable("kernel", "weight", layout=lambda tensor: look_up("scale"))])
    with pytest.raises(KeyError) as caught:
        kinit.apply(nn.Sequential(OfKeys()), seed=1)
    assert frames(caught.value)[-1] == "look_up"
    assert "0.weight" in said(caught.value)
