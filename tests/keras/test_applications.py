"""Models of keras.applications are read whole, from what keras_config captures and from a plain config."""

import functools

import pytest

import torch_kinit as kinit
from tests.support.mechanical import Port
from tests.support.programs import RUN, from_captured, from_config, here

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("_keras_on_cpu", "_one_thread")]

# Each with a class or shape that no other has; tests/support/named_programs.py has MobileNetV3, ConvNeXt, Xception and
# NASNet.
SIZES = {"DenseNet121": 32, "EfficientNetV2B0": 32, "InceptionResNetV2": 75, "InceptionV3": 75, "ResNet50V2": 32}
each_model = pytest.mark.parametrize("name", SIZES)


@functools.cache
def made(name):
    """The program, and what Keras makes of it, once for all tests."""
    shape = (SIZES[name], SIZES[name], 3)
    source = f"def make(): return keras.applications.{name}(input_shape={shape}, weights=None, classes=5)"
    return source, here(RUN, programs=[(source, 1)], folder=None)[0]


@each_model
def test_what_was_captured_gives_the_very_weights(name):
    """keras_config of the live model gives every weight, without a seed and without a warning."""
    assert from_captured(*made(name), "torch").verdict == "exact"


@each_model
def test_a_plain_config_gives_the_very_weights(name):
    """The saved config gives every weight, with a word on how the program is taken to be written."""
    outcome = from_config(*made(name), "torch")
    assert outcome.equal
    assert all("The config does not tell all" in warning for warning in outcome.warnings)


@each_model
def test_each_tensor_has_a_rule(name):
    """rules_from_keras reads every layer."""
    port = Port(made(name)[1]["layers"]).model
    rules = kinit.rules_from_keras(made(name)[1]["config"], port)
    assert len(rules) == len(made(name)[1]["weights"])
    kinit.plan(port, rules)
