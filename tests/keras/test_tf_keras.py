"""Configs of tf.keras, which draws a seed when an initializer is first called: replayed against tf_keras itself."""

import importlib.util

import pytest
import torch
from torch import nn

import torch_kinit as kinit
from tests.support.backends import backend, same_bits

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not importlib.util.find_spec("tf_keras"), reason="pip install --no-deps tf_keras==2.21.0"),
]

RUN = """
import tf_keras as keras
from tf_keras import initializers as ki
from tf_keras import layers as kl
keras.backend.clear_session()
keras.utils.set_random_seed(5)
{source}
result = {{"weights": model.get_weights(), "config": model.to_json()}}
"""

STACK = """
model = keras.Sequential([
    keras.Input((9, 8, 3)), kl.Conv2D(4, 3, kernel_initializer="he_normal"), kl.DepthwiseConv2D((2, 3)),
    kl.GaussianNoise(0.1), kl.BatchNormalization(), kl.SeparableConv2D(5, 2), kl.Dropout(0.1), kl.GlobalMaxPooling2D(),
    kl.Dense(3, bias_initializer="random_normal")])
"""
TEXT = """
model = keras.Sequential([
    keras.Input((7,)), kl.Embedding(11, 4), kl.Bidirectional(kl.LSTM(5, dropout=0.1, return_sequences=True)),
    kl.GRU(3, recurrent_initializer="glorot_normal"), kl.Dense(2)])
"""
ATTENTION = """
i = keras.Input((5, 8))
head = kl.Dense(3)
x = kl.LayerNormalization()(kl.MultiHeadAttention(2, 4, dropout=0.1)(i, i))
model = keras.Model(i, head(kl.Dropout(0.1)(kl.Dense(6)(x))))
"""
NESTED = """
encoder = keras.Sequential([kl.Dense(5), kl.Dropout(0.1), kl.Dense(4)])
j = keras.Input((4,))
decoder = keras.Model(j, kl.Dense(3)(j))
i = keras.Input((6,))
model = keras.Model(i, decoder(encoder(kl.Dense(6)(i))))
"""


def stack():
    separable = nn.Sequential(nn.Conv2d(4, 4, 2, groups=4, bias=False), nn.Conv2d(4, 5, 1))
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, (2, 3), groups=4), nn.BatchNorm2d(4), separable, nn.Linear(5, 3)
    )


def text():
    return nn.Sequential(nn.Embedding(11, 4), nn.LSTM(4, 5, bidirectional=True), nn.GRU(10, 3), nn.Linear(3, 2))


def attention():
    return nn.Sequential(nn.MultiheadAttention(8, 2), nn.LayerNorm(8), nn.Linear(8, 6), nn.Linear(6, 3))


def nested():
    return nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3))


@pytest.mark.filterwarnings("ignore:The config does not tell all")
@pytest.mark.parametrize(("source", "port"), [(STACK, stack), (TEXT, text), (ATTENTION, attention), (NESTED, nested)])
def test_a_plain_config_of_tf_keras_is_replayed(source, port):
    """Seeds go to weights in the order in which layers are built, and dropout draws none; orthogonal within 5e-5."""
    made, model = backend("tensorflow")(RUN.format(source=source)), port()
    kinit.replay_keras(model, 5, backend="tensorflow", keras_config=made["config"], convention="keras-3.14")
    for ours, theirs in zip(kinit.to_keras(model), made["weights"], strict=True):
        a, b = torch.from_numpy(ours).reshape(-1), theirs.reshape(-1)
        assert same_bits(a, b) or (source is TEXT and len(a) in (100, 27) and torch.allclose(a, b, rtol=0, atol=5e-5))


def test_what_cannot_be_so_is_refused_or_told():
    """tf.keras draws on TensorFlow alone, and its attention had other fans."""
    config = backend("tensorflow")(RUN.format(source=ATTENTION))["config"]
    with pytest.raises(ValueError, match=r"is of tf\.keras, which draws on TensorFlow, and `backend` is 'jax'"):
        kinit.replay_keras(attention(), 5, backend="jax", keras_config=config)
    with pytest.warns(UserWarning, match=r"fans are those of `convention`=.keras-3\.15., though"):
        kinit.replay_keras(attention(), 5, backend="tensorflow", keras_config=config)


IN_TIME = """
import tensorflow as tf
inner = [kl.Dense(4), kl.BatchNormalization(), kl.Dense(4), kl.BatchNormalization()]
i = keras.Input((5, 4))
model = keras.Model(i, kl.Dense(4)(kl.TimeDistributed(keras.Sequential(inner))(kl.Dense(4)(i))))
for weight in model.weights:
    weight.assign(tf.random.uniform(weight.shape, 0.5, 1.5))
layers = [model.layers[1], *inner, model.layers[3]]
"""
BY_LAYER = """
result["by_layer"] = [weight.numpy() for layer in layers for weight in layer.weights]
"""


def in_time():
    blocks = [module for _ in range(2) for module in (nn.Linear(4, 4), nn.BatchNorm1d(4))]
    return nn.Sequential(nn.Linear(4, 4), *blocks, nn.Linear(4, 4))


def test_statistics_that_tf_keras_has_last_find_their_places():
    """Of a model in TimeDistributed, get_weights() has the statistics after all that is trained."""
    made = backend("tensorflow")(RUN.format(source=IN_TIME) + BY_LAYER)
    port, weights, by_layer = in_time(), made["weights"], made["by_layer"]
    kinit.from_keras(port, weights, keras_config=made["config"])
    assert all(map(same_bits, map(torch.from_numpy, kinit.to_keras(port)), by_layer))
    back = [torch.from_numpy(array) for array in kinit.to_keras(port, keras_config=made["config"])]
    assert all(map(same_bits, back, weights))
    assert not all(map(same_bits, back, by_layer))


CAPTURED = """
from torch_kinit import keras_config
result["captured"] = keras_config(model)
"""


def test_arrays_beside_a_captured_config_too():
    """keras_config lists weights as get_weights() does, whatever the order of the layers."""
    made = backend("tensorflow")(RUN.format(source=IN_TIME) + BY_LAYER + CAPTURED)
    port = in_time()
    kinit.from_keras(port, made["weights"], keras_config=made["captured"])
    assert all(map(same_bits, map(torch.from_numpy, kinit.to_keras(port)), made["by_layer"]))
    back = [torch.from_numpy(array) for array in kinit.to_keras(port, keras_config=made["captured"])]
    assert all(map(same_bits, back, made["weights"]))


LIVE = """
import numpy as np
import torch_kinit as kinit
from torch import nn
blocks = [module for _ in range(2) for module in (nn.Linear(4, 4), nn.BatchNorm1d(4))]
port = nn.Sequential(nn.Linear(4, 4), *blocks, nn.Linear(4, 4))
kinit.from_keras(port, model)
result = [np.array_equal(a, b) for a, b in zip(kinit.to_keras(port), result["by_layer"], strict=True)]
"""


def test_a_live_model_of_tf_keras_gives_its_weights_layer_by_layer():
    """So that they find their places in a port, whatever the order of its get_weights()."""
    assert all(backend("tensorflow")(RUN.format(source=IN_TIME) + BY_LAYER + LIVE))
