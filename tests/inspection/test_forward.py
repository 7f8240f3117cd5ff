"""Recorded outputs beside a port's: planted faults of forward are each named, and careful ports are not."""

import functools
import json
import math

import keras
import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from keras import layers as kl
from torch import nn

import torch_kinit as kinit
from torch_kinit.inspection.forward import forward_report

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("_keras_on_cpu")]


def images():
    """A convolutional network with what ports of such get wrong."""
    inputs = keras.Input((8, 8, 3))
    x = kl.Conv2D(6, 3, strides=2, padding="same", use_bias=False, name="stem")(inputs)
    x = kl.LeakyReLU(name="leaky")(kl.BatchNormalization(name="norm")(x))
    x = kl.UpSampling2D(2, interpolation="bilinear", name="up")(x)
    x = kl.MaxPooling2D(3, strides=2, padding="same", name="pool")(x)
    x = kl.Conv2DTranspose(4, 3, strides=2, padding="same", activation="relu", name="wide")(x)
    x = kl.Flatten(name="flat")(kl.AveragePooling2D(2, name="mean")(x))
    x = kl.Dense(10, activation="gelu", name="hidden")(x)
    return keras.Model(inputs, kl.Dense(3, activation="softmax", name="head")(x))


class Images(nn.Module):
    """Its port; `wrong` is one mistake."""

    def __init__(self, wrong=""):
        super().__init__()
        self.wrong = wrong
        padding = 1 if wrong == "crop" else 0
        self.stem = nn.Conv2d(3, 6, 3, stride=2, padding=padding, bias=False)
        self.norm = nn.BatchNorm2d(6, eps=1e-5 if wrong == "batch eps" else 1e-3)
        self.leaky = nn.LeakyReLU(0.01 if wrong == "slope" else 0.3)
        self.wide = nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1 if wrong == "transpose" else 0, output_padding=1)
        if wrong != "transpose":
            self.wide.output_padding = (0, 0)
        linear = nn.Linear(64, 10)
        self.hidden = linear if wrong == "flatten" else kinit.flattened(linear, (4, 4, 4))
        self.head = nn.Linear(10, 3)

    def forward(self, x):
        wrong = self.wrong
        if wrong == "statistics":
            self.norm.train()
        x = self.stem(x if wrong == "crop" else F.pad(x, (0, 1, 0, 1)))
        x = self.leaky(self.norm(x))
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=wrong == "corners")
        if wrong == "pool":
            x = F.max_pool2d(x, 3, 2, padding=1)
        else:
            x = F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-math.inf), 3, 2)
        x = self.wide(x)
        x = x if wrong == "transpose" else x[..., :8, :8]
        x = x if wrong == "missing" else F.relu(x)
        x = F.avg_pool2d(x, 2).flatten(1)
        x = F.gelu(self.hidden(x), approximate="tanh" if wrong == "gelu" else "none")
        x = F.softmax(self.head(x), -1)
        return F.softmax(x, -1) if wrong == "twice" else x


def texts():
    """A classifier of padded sequences."""
    inputs = keras.Input((6,), dtype="int32")
    x = kl.Embedding(9, 8, mask_zero=True, name="words")(inputs)
    x = kl.Bidirectional(kl.LSTM(4, return_sequences=True, name="lstm"), name="both")(x)
    x = kl.LayerNormalization(name="norm")(x)
    x = kl.MultiHeadAttention(2, 4, name="attention")(x, x)
    pooled = kl.GlobalAveragePooling1D(name="mean")(x)
    last = kl.Bidirectional(kl.GRU(3), name="last")(x)
    x = kl.Concatenate(name="joined")([pooled, last])
    return keras.Model(inputs, kl.Dense(2, activation="sigmoid", name="head")(x))


class Texts(nn.Module):
    """Its port; `wrong` is one mistake."""

    def __init__(self, wrong=""):
        super().__init__()
        self.wrong = wrong
        self.words = nn.Embedding(9, 8)
        self.both = nn.LSTM(8, 4, bidirectional=True, batch_first=True)
        self.norm = nn.LayerNorm(8, eps=1e-5 if wrong == "layer eps" else 1e-3)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.last = nn.GRU(8, 3, bidirectional=True, batch_first=True)
        self.head = nn.Linear(14, 2)

    def forward(self, tokens):
        wrong, mask = self.wrong, tokens != 0
        pack = functools.partial(nn.utils.rnn.pack_padded_sequence, batch_first=True, enforce_sorted=False)
        x = self.words(tokens)
        if wrong == "mask of an LSTM":
            x = self.both(x)[0]
        else:
            x = nn.utils.rnn.pad_packed_sequence(self.both(pack(x, mask.sum(1)))[0], batch_first=True)[0]
        x = self.norm(x)
        x = self.attention(x, x, x, key_padding_mask=None if wrong == "mask of attention" else ~mask)[0]
        pooled = x.mean(1) if wrong == "mask of the mean" else (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        out, h = self.last(pack(x, mask.sum(1)))
        last = torch.cat([h[-2], h[-1]], -1)
        if wrong == "backward half":
            out = nn.utils.rnn.pad_packed_sequence(out, batch_first=True)[0]
            last = out[torch.arange(len(x)), -1]
        parts = [last, pooled] if wrong == "order" else [pooled, last]
        x = self.head(torch.cat(parts, -1))
        return x if wrong == "no sigmoid" else torch.sigmoid(x)


RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(3, 8, 8, 3)).astype("float32")
TOKENS = np.array([[1, 2, 3, 4, 5, 6], [7, 8, 3, 2, 0, 0], [5, 4, 1, 0, 0, 0]], "int32")


@pytest.fixture(scope="module")
def kerases():
    """Both models with weights that are no defaults, and their configs with recorded outputs, through JSON."""
    found = {}
    for make, batch in ((images, IMAGES), (texts, TOKENS)):
        keras.utils.set_random_seed(0)
        with keras.device("cpu"):
            model = make()
            model.set_weights([w + RNG.uniform(-0.1, 0.2, w.shape).astype("float32") for w in model.get_weights()])
            found[make.__name__] = model, json.dumps(kinit.keras_config(model, inputs=batch))
    return found


def report(kerases, kind, wrong="", inputs=None):
    name = kind.__name__.lower()
    model, config = kerases[name]
    port = kind(wrong)
    kinit.from_keras(port, model.get_weights())
    return forward_report(json.loads(config), port, inputs)


FAULTS = {
    "shifted crop": (Images, "crop", "stem", "windows are shifted", "F.pad(x, (0, 1, 0, 1))"),
    "epsilon of BatchNorm": (Images, "batch eps", "norm", "Keras' epsilon 0.001", "eps=0.001"),
    "statistics of the batch": (Images, "statistics", "norm", "the batch's mean and variance", "model.eval()"),
    "slope of LeakyReLU": (Images, "slope", "leaky", "slope 0.01 where Keras has leaky_relu, slope 0.3", "0.3"),
    "aligned corners": (Images, "corners", "up", "align_corners=True", "align_corners=False"),
    "shifted pooling": (Images, "pool", "pool", "windows are shifted", "F.pad(x, (0, 1, 0, 1)"),
    "transposed crop": (Images, "transpose", "wide", "windows are shifted", "[..., 0:8, 0:8]"),
    "activation missing": (Images, "missing", "wide", "activation is missing: Keras has relu", "F.relu(x)"),
    "flatten permuted": (Images, "flatten", "flat", "channels first (4, 4, 4)", "kinit.flattened(linear, (4, 4, 4))"),
    "GELU by tanh": (Images, "gelu", "hidden", "gelu, tanh form where Keras has gelu", "F.gelu(x)"),
    "softmax twice": (Images, "twice", "head", "softmax, is applied twice", "once"),
    "mask of an LSTM": (Texts, "mask of an LSTM", "both", "the mask is ignored: 2 of 3", "pack_padded_sequence"),
    "epsilon of LayerNorm": (Texts, "layer eps", "norm", "Keras' epsilon 0.001", "nn.LayerNorm(..., eps=0.001)"),
    "mask of attention": (Texts, "mask of attention", "attention", "the mask is ignored", "key_padding_mask"),
    "mask of the mean": (Texts, "mask of the mean", "mean", "the mask is ignored", "mask.sum(1"),
    "order of a merge": (Texts, "order", "joined", "the other order", "Concatenate"),
    "sigmoid missing": (Texts, "no sigmoid", "head", "activation is missing: Keras has sigmoid", "torch.sigmoid(x)"),
}


@pytest.mark.parametrize(("kind", "wrong", "layer", "cause", "mend"), FAULTS.values(), ids=FAULTS)
def test_the_first_layer_that_is_off_is_named_with_its_cause(kerases, kind, wrong, layer, cause, mend):
    """A port with one mistake in forward is told the Keras layer, the cause and the line that mends it."""
    found = report(kerases, kind, wrong)
    assert (found.first_off, found.mode) == (layer, "eval"), found
    assert cause in found.cause
    assert mend in found.mend
    assert found.difference > 1e-5
    assert not found.ok


@pytest.mark.parametrize("kind", [Images, Texts])
def test_careful_ports_are_equal(kerases, kind):
    """A port without mistakes is Keras' twin in both modes, each layer with weights seen."""
    found = report(kerases, kind)
    assert found.ok, found
    assert {row.mode for row in found.rows} == {"eval", "train"}
    assert {row.state for row in found.rows} <= {
        "equal",
        "equal, a part of it",
        "equal before its activation",
        "not seen",
    }
