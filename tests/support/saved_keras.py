"""What Keras saves of layers and models, and the check that what is read from it gives Keras' own weights."""

import json
import math
import random

import keras
import torch
from keras import initializers as ki
from keras import layers as kl

from torch_kinit.keras.configs import load_config
from torch_kinit.keras.draws import Source, seeds_of
from torch_kinit.keras.saved_model import Model


def values(weight, seeds):
    """What Keras' own initializer gives for a weight, from its config, the seed of its source and its axes."""
    identifier = weight.source.config
    initializer = ki.get(identifier if isinstance(identifier, str) else dict(identifier))
    config = initializer.get_config()
    if weight.source.random:
        config["seed"] = seeds[weight.source]
    if weight.axes:
        config["input_axes"], config["output_axes"] = weight.axes
        assert weight.fans == tuple(math.prod(weight.shape[a] for a in axes) for axes in weight.axes)
    initializer = type(initializer).from_config(config)
    if weight.unit_forget:
        n = weight.shape[0] // 4
        return torch.cat([initializer((n,)), torch.ones(n), initializer((2 * n,))])
    found = initializer(weight.shape)
    return found.sqrt() if weight.name.endswith("stddev") else found


def check_weights(weights, seeds, expected):
    """The names, shapes and values are Keras'."""
    assert [weight.name.rpartition("/")[2] for weight in weights] == [w.name for w in expected]
    assert [weight.shape for weight in weights] == [tuple(w.shape) for w in expected]
    for weight, real in zip(weights, expected, strict=True):
        assert torch.equal(values(weight, seeds), real.value.detach().float()), weight.name


def saved(obj):
    """The config as it is in a file."""
    return json.loads(json.dumps(keras.saving.serialize_keras_object(obj)))


def check_recovered(make, build=None, names=None, seed=1):
    """Make a model in code, read its config, draw, and compare each weight and the number that comes next."""
    keras.backend.clear_session(free_memory=False)  # so that automatic names start anew, as in a program
    keras.utils.set_random_seed(seed)
    real = make()
    following = random.randint(1, 10**9)
    model, last = Model(load_config(real.to_json())), Source(None)
    sources, _ = model.schedule(build, names)
    seeds = seeds_of([*sources, last], seed)
    assert seeds[last] == following
    check_weights([weight for found in model.layers for weight in found.weights], seeds, real.weights)
    return model


def spectral(units):
    """A layer that draws when it is built."""
    return kl.SpectralNormalization(kl.Dense(units))


def block(x, filters, shortcut):
    """A block of a ResNet, whose shortcut stands after the first convolution in the config."""
    y = kl.Conv2D(filters, 1)(x) if shortcut else x
    x = kl.BatchNormalization()(kl.Conv2D(filters, 3, padding="same")(x))
    x = kl.Dropout(0.1)(x)
    x = kl.PReLU("normal")(x)
    x = kl.Conv2D(filters, 3, padding="same")(x)
    return kl.ReLU()(kl.Add()([x, y]))


def resnet():
    inputs = keras.Input((8, 8, 3))
    x = kl.Conv2D(4, 3)(inputs)
    for i in range(12):  # more than ten, so that conv2d_9 comes before conv2d_10
        x = block(x, 4 + i // 4, i % 4 == 0)
    return keras.Model(inputs, kl.Dense(3)(kl.GlobalAveragePooling2D()(x)))
