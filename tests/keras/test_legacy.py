"""Layers of tf.keras that Keras 3 has no more, and those that torch has no twin for."""

import importlib.util
import json
import re

import pytest
import torch
from torch import nn

import torch_kinit as kinit
from tests.support.backends import backend
from torch_kinit.keras.read import read_layer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not importlib.util.find_spec("tf_keras"), reason="pip install --no-deps tf_keras==2.21.0"),
]

RUN = """
import tf_keras
from tf_keras import layers as kl
from tf_keras.src.layers.normalization.batch_normalization_v1 import BatchNormalization as BatchNormalizationV1
from tf_keras.src.layers.rnn.cudnn_gru import CuDNNGRU
from tf_keras.src.layers.rnn.cudnn_lstm import CuDNNLSTM
tf_keras.backend.clear_session()
x = tf_keras.Input(shape)
layer = eval(made)
try:
    model = tf_keras.Model(x, layer(x, x) if 'Attention' in made else layer(x))
    config = model.to_json()
except Exception:  # there is no CPU kernel of cuDNN's layers, which are built all the same
    layer.build((None, *shape))
    config = None
result = {
    "model": config,
    "layer": tf_keras.saving.serialize_keras_object(layer),
    "weights": [(w.name.rpartition("/")[2].removesuffix(":0"), w.numpy()) for w in layer.weights],
}
"""


def legacy(code, *shape):
    return backend("tensorflow")(RUN, made=code, shape=shape)


LOCAL_1 = [
    f"kl.LocallyConnected1D(2, 3, strides={strides}, implementation={n}, data_format='{order}'{padding})"
    for n, padding in ((1, ""), (2, ", padding='same'"), (3, ""))
    for strides in (1, 2)
    for order in ("channels_first", "channels_last")
]
CASES = {
    **{code: (code, 7, 6) for code in LOCAL_1},
    **{
        code: (code, 5, 6, 4)
        for n in (1, 2, 3)
        for code in [f"kl.LocallyConnected2D(2, (3, 2), implementation={n}, use_bias={n != 2})"]
    },
    "SyncBatchNormalization": ("kl.experimental.SyncBatchNormalization(scale=False)", 5, 4),
    "BatchNormalizationV1": ("BatchNormalizationV1(center=False)", 5, 4),
    "BatchNormalizationV1 renorm": ("BatchNormalizationV1(renorm=True)", 5, 4),
    "CuDNNLSTM": ("CuDNNLSTM(3)", 5, 4),
    "CuDNNLSTM no unit_forget_bias": ("CuDNNLSTM(3, unit_forget_bias=False)", 5, 4),
    "CuDNNGRU": ("CuDNNGRU(3)", 5, 4),
    "GRU reset before": ("kl.GRU(3, reset_after=False)", 5, 4),
    "RandomHeight": ("kl.RandomHeight(0.1)", 8, 8, 3),
    "MultiHeadAttention": ("kl.MultiHeadAttention(2, 3)", 5, 4),
    "RNN of cells": ("kl.RNN([kl.LSTMCell(2), kl.GRUCell(3)])", 5, 4),
    "Bidirectional": ("kl.Bidirectional(kl.LSTM(2))", 5, 4),
    "TimeDistributed": ("kl.TimeDistributed(kl.BatchNormalization())", 5, 4),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_weights_are_those_of_tf_keras(case):
    """Names and shapes are those of the built layer, and its biases and statistics start as the config is read."""
    real = legacy(*case)
    entry = json.loads(real["model"])["config"]["layers"][-1] if real["model"] else real["layer"]
    found = read_layer(entry).weights
    assert [weight.name.rpartition("/")[2] for weight in found] == [name for name, _ in real["weights"]]
    for weight, (name, value) in zip(found, real["weights"], strict=True):
        assert weight.shape is not None
        assert all(a in (None, b) for a, b in zip(weight.shape, value.shape, strict=True)), name
        assert "Attention" not in case[0] or weight.shape == tuple(value.shape)  # sizes that tf.keras saves elsewhere
        if not weight.source.random and not weight.unit_forget and "CuDNN" not in case[0]:
            assert value.equal(torch.full_like(value, float(weight.source.name == "ones"))), name


def test_names_of_old_configs_are_read():
    """BatchNormalizationV1 and V2, as TensorFlow 1 saved them."""
    for name in ("BatchNormalizationV1", "BatchNormalizationV2"):
        names = [weight.name for weight in read_layer({"class_name": name, "config": {"name": "bn"}}).weights]
        assert names == ["gamma", "beta", "moving_mean", "moving_variance"]


def model_of(config, name=None):
    """A Sequential whose layer has this name, if it must."""
    if name:
        config = {**config, "config": {**config["config"], "name": name}}
    return {"class_name": "Sequential", "config": {"layers": [config, DENSE]}}


DENSE = {"class_name": "Dense", "config": {"name": "head", "units": 2, "kernel_initializer": "he_normal"}}
LOCAL = {"class_name": "LocallyConnected1D", "config": {"name": "local", "filters": 2, "kernel_size": [3]}}
HEAD = {"1.weight": "he_normal", "1.bias": "zeros"}


def gru(**more):
    return {"class_name": "GRU", "config": {"name": "gru", "units": 3, "reset_after": False, **more}}


WITHOUT_TWIN = {
    "LocallyConnected1D": (LOCAL, nn.Conv1d(6, 2, 3), "'local' is a LocallyConnected1D, for which torch has no twin"),
    "GRU": (gru(), nn.GRU(4, 3), "'gru' is a GRU with reset_after=False, for which torch has no twin"),
    "GRU no bias": (
        gru(use_bias=False),
        nn.GRU(4, 3, bias=False),
        "'gru' is a GRU with reset_after=False, for which torch has no twin",
    ),
    "Bidirectional": (
        {"class_name": "Bidirectional", "config": {"name": "both", "layer": gru(use_bias=False)}},
        nn.GRU(4, 3, bias=False, bidirectional=True),
        "'both' is a GRU with reset_after=False, for which torch has no twin",
    ),
    "GRUCell": (
        {"class_name": "GRUCell", "config": {"name": "cell", "units": 3, "reset_after": False}},
        nn.GRUCell(4, 3),
        "'cell' is a GRU with reset_after=False",
    ),
    "CuDNNLSTM": (
        {"class_name": "CuDNNLSTM", "config": {"name": "lstm", "units": 3}},
        nn.LSTM(4, 3),
        "'lstm' is a CuDNNLSTM, whose two biases are one array, for which torch has no twin",
    ),
}


@pytest.mark.parametrize(("entry", "module", "message"), WITHOUT_TWIN.values(), ids=WITHOUT_TWIN)
def test_a_layer_without_twin_says_so(entry, module, message):
    """Rules and replay say that torch has no twin, not that a shape is off; None in `modules` helps."""
    port, config = nn.Sequential(module, nn.Linear(3, 2)), model_of(entry)
    with pytest.raises(ValueError, match=message) as caught:
        kinit.rules_from_keras(config, port)
    with pytest.raises(ValueError, match=re.escape(str(caught.value))):
        kinit.replay_keras(port, 0, backend="torch", keras_config=config)
    without = nn.ModuleDict({"1": port[1]})
    assert kinit.rules_from_keras(config, without, modules={entry["config"]["name"]: None}) == HEAD


class OwnGRU(nn.Module):
    """A GRU that resets before."""

    def __init__(self):
        super().__init__()
        self.kernel, self.recurrent = nn.Parameter(torch.empty(4, 9)), nn.Parameter(torch.empty(3, 9))
        self.bias = nn.Parameter(torch.empty(9))


def test_a_module_of_ones_own_can_be_its_twin(register):
    """Where a layout tells that a module holds what Keras' GRU(reset_after=False) does, it is taken."""
    parts = (("kernel", "kernel"), ("recurrent_kernel", "recurrent"), ("bias", "bias"))
    register(OwnGRU, lambda module: [kinit.Variable(role, name, "keras") for role, name in parts])
    port = nn.Sequential(OwnGRU(), nn.Linear(3, 2))
    own = {"0.kernel": "glorot_uniform", "0.recurrent": "orthogonal", "0.bias": "zeros"}
    assert kinit.rules_from_keras(model_of(gru()), port) == own | HEAD


PROGRAM = """
import tf_keras
import tensorflow as tf
from tf_keras import layers as kl
x = tf_keras.Input((7, 4))
y = tf.nn.relu(kl.Dense(3)(x) + 1.0)[:, :5]
inner = [kl.Dense(3), kl.BatchNormalization(), kl.BatchNormalization(scale=False)]
y = kl.TimeDistributed(tf_keras.Sequential(inner))(y)
y = tf.reduce_mean(y, 1)
model = tf_keras.Model(x, kl.Dense(2, kernel_initializer="he_normal")(y))
result = {"config": model.to_json(), "names": [w.name.rpartition("/")[2] for w in model.weights]}
"""


def port_of_program():
    second = nn.BatchNorm1d(3)
    second.weight = None
    return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3), nn.BatchNorm1d(3), second, nn.Linear(3, 2))


def test_operators_of_tf_keras_hold_nothing():
    """Operators on tensors are passed over; statistics that tf.keras has last find their places."""
    real = backend("tensorflow")(PROGRAM)
    assert real["names"][2:-2] == [
        *("kernel:0", "bias:0", "gamma:0", "beta:0", "beta:0"),
        *("moving_mean:0", "moving_variance:0") * 2,
    ]
    rules = kinit.rules_from_keras(real["config"], port_of_program())
    assert {name: rules[name] for name in rules if name[0] in "23"} == {
        **{"2.weight": "ones", "2.bias": "zeros", "2.running_mean": "zeros", "2.running_var": "ones"},
        **{"3.bias": "zeros", "3.running_mean": "zeros", "3.running_var": "ones"},
    }
    assert rules["4.weight"] == "he_normal"
