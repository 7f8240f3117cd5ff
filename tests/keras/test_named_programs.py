"""Well-known Keras programs are replayed: exactly from what keras_config captures, and never wrongly without a word."""

import functools

import pytest

from tests.support.backends import NAMES
from tests.support.named_programs import NAMED
from tests.support.programs import from_captured, from_config, real

pytestmark = pytest.mark.slow  # asks processes of Keras

on_each_backend = pytest.mark.parametrize("name", NAMES)
each_program = pytest.mark.parametrize("case", NAMED)


@pytest.fixture(autouse=True)
def _sampling(register_keras):
    """Registers a VAE's layer, which has no weights and a SeedGenerator with a seed, for one test only."""
    register_keras("Sampling")


@functools.cache
def made(name, case):
    """What Keras makes of a program on a backend, once for all tests."""
    return real(name, [NAMED[case]])[0]


@each_program
@on_each_backend
def test_what_was_captured_gives_the_very_weights(name, case):
    """keras_config of the live model gives every weight, without a seed and without a warning."""
    assert from_captured(NAMED[case], made(name, case), name).verdict == "exact"


@each_program
@on_each_backend
def test_a_plain_config_is_never_wrong_without_a_word(name, case):
    """The saved config gives every weight, or a warning."""
    assert from_config(NAMED[case], made(name, case), name).verdict in ("exact", "warned")
