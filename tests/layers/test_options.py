"""The conventions by which layers are read are checked once, when they are chosen."""

import dataclasses

import pytest

from torch_kinit.layers.variable import CONVENTIONS, Options


@pytest.mark.parametrize(
    ("told", "error", "message"),
    [
        (
            {"convention": "keras-3.1"},
            ValueError,
            "`convention` must be one of 'keras-3.15', 'keras-3.14', got 'keras-3.1",
        ),
        ({"convention": None}, ValueError, "`convention` must be one of 'keras-3.15', 'keras-3.14', got None"),
        ({"depthwise": 1}, TypeError, "`depthwise` must be True or False, got 1"),
    ],
)
def test_other_conventions_are_refused(told, error, message):
    """A sentence names the argument, what came and what is accepted; also where one is replaced."""
    with pytest.raises(error, match=message):
        Options(**told)
    with pytest.raises(error, match=message):
        dataclasses.replace(Options(), **told)


def test_options_are_values():
    """They are equal by what they say, and cannot be changed."""
    assert Options() == Options(CONVENTIONS[0], True) != Options(CONVENTIONS[1])
    with pytest.raises(dataclasses.FrozenInstanceError):
        Options().depthwise = False
