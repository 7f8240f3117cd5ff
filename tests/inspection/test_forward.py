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


class Program(keras.Model):
    """A subclassed model: a layer called twice, attention, and arithmetic that is no layer."""

    def __init__(self):
        super().__init__()
        self.embed, self.block = kl.Dense(8, name="embed"), kl.Dense(8, activation="tanh", name="block")
        self.heads, self.dot = kl.MultiHeadAttention(2, 4, name="heads"), kl.Attention(name="dot")
        self.norm, self.drop = kl.BatchNormalization(name="norm"), kl.Dropout(0.5, name="drop")
        self.head = kl.Dense(2, name="head")

    def call(self, x, training=False):
        x = self.embed(x)
        x = self.norm(x + self.heads(x, x), training=training)
        x = self.drop(self.block(self.block(x)), training=training)
        return self.head(self.dot([x, x])[:, 0])


def programs():
    model = Program()
    model(STEPS)
    return model


class Programs(nn.Module):
    """Its port, attention written out; `wrong` is one mistake."""

    def __init__(self, wrong=""):
        super().__init__()
        self.wrong = wrong
        self.embed, self.block = nn.Linear(6, 8), nn.Linear(8, 8)
        self.query, self.key, self.value, self.output = (nn.Linear(8, 8) for _ in range(4))
        self.norm, self.drop, self.head = nn.BatchNorm1d(8, eps=1e-3), nn.Dropout(0.5), nn.Linear(8, 2)

    def forward(self, x):
        wrong, x = self.wrong, self.embed(x)
        query, key, value = (f(x).unflatten(-1, (2, 4)).transpose(1, 2) for f in (self.query, self.key, self.value))
        scale = 1.0 if wrong == "unscaled" else None
        mixed = F.scaled_dot_product_attention(query, key, value, scale=scale).transpose(1, 2).flatten(2)
        x = self.output(mixed) if wrong == "no residual" else x + self.output(mixed)
        if wrong == "frozen":
            self.norm.eval()
        x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        for k in range(2):
            x = self.block(x)
            x = F.relu(x) if wrong == "second call" and k else torch.tanh(x)
        x = self.drop(x)
        scale = None if wrong == "scaled" else 1.0
        return self.head(F.scaled_dot_product_attention(x, x, x, scale=scale)[:, 0])


def cubes():
    """Images of as many channels as rows."""
    layers = [kl.Conv2D(4, 2, activation="relu", name="conv"), kl.GlobalAveragePooling2D(name="mean")]
    return keras.Sequential([keras.Input((3, 3, 3)), *layers, kl.Dense(2, name="head")])


def stacks():
    """Models in a model, layers in time, and two recurrent layers that one module holds."""
    conv = kl.Conv1D(6, 3, padding="causal", dilation_rate=2, activation="relu", name="causal")
    separable = kl.SeparableConv1D(4, 3, strides=2, padding="same", name="separable")
    inner = keras.Sequential([keras.Input((10, 6)), conv, separable], name="inner")
    inputs = keras.Input((10, 6))
    x = kl.TimeDistributed(kl.Dense(5, activation="elu"), name="timed")(inner(inputs))
    x = kl.LSTM(4, name="second")(kl.LSTM(4, return_sequences=True, name="first")(x))
    return keras.Model(inputs, kl.Dense(1, name="head")(x))


class Stacks(nn.Module):
    """Its port; `wrong` is one mistake."""

    def __init__(self, wrong=""):
        super().__init__()
        self.wrong = wrong
        self.causal = nn.Conv1d(6, 6, 3, dilation=2)
        self.depthwise = nn.Conv1d(6, 6, 3, stride=2, groups=6, bias=False, padding=int(wrong == "separable"))
        self.pointwise = nn.Conv1d(6, 4, 1)
        self.timed, self.recurrent = nn.Linear(4, 5), nn.LSTM(5, 4, num_layers=2, batch_first=True)
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        wrong, x = self.wrong, x.transpose(1, 2)
        x = F.relu(self.causal(F.pad(x, (2, 2) if wrong == "causal" else (4, 0))))
        x = self.depthwise(x if wrong == "separable" else F.pad(x, (0, 1)))
        x = self.timed(self.pointwise(x).transpose(1, 2))
        out, (h, _) = self.recurrent(F.selu(x) if wrong == "selu" else F.elu(x))
        return self.head(h[0] if wrong == "lower state" else out.mean(1) if wrong == "mean" else h[-1])


class Cubes(nn.Module):
    def __init__(self, wrong=""):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 2), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(F.relu(self.conv(x)).mean((2, 3)))


def branches():
    """Two inputs and two outputs, with arithmetic between layers."""
    image, meta = keras.Input((8, 8, 3)), keras.Input((5,))
    x = kl.Conv2D(4, 3, strides=2, activation="relu", name="first")(image)
    x = kl.Conv2D(4, 2, dilation_rate=2, padding="same", name="wide")(x)
    x = kl.BatchNormalization(name="norm")(kl.Activation("relu", name="relu")(x))
    x = kl.GlobalMaxPooling2D(name="most")(kl.AveragePooling2D(2, padding="same", name="mean")(x))
    y = kl.Dense(4, name="upper")(kl.Dense(4, activation="softplus", name="lower")(meta))
    z = kl.Multiply(name="product")([x, y]) + y * 0.5
    return keras.Model([image, meta], [kl.Dense(3, activation="softmax", name="a")(z), kl.Dense(1, name="b")(z)])


class Branches(nn.Module):
    """Its port; `wrong` is one mistake."""

    def __init__(self, wrong=""):
        super().__init__()
        self.wrong = wrong
        self.first = nn.Conv2d(3, 4, 3, stride=1 if wrong == "stride" else 2)
        self.wide = nn.Conv2d(4, 4, 2, dilation=1 if wrong == "dilation" else 2)
        self.norm = nn.BatchNorm2d(4, eps=1e-3)
        self.lower, self.upper, self.a, self.b = nn.Linear(5, 4), nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(4, 1)

    def forward(self, image, meta):
        wrong, x = self.wrong, F.relu(self.first(image))
        x = self.wide(F.pad(x, (0, 1, 0, 1) if wrong == "dilation" else (1, 1, 1, 1)))
        x = F.relu(self.norm(x)) if wrong == "norm first" else self.norm(F.relu(x))
        x, ones = (F.avg_pool2d(F.pad(t, (0, 1, 0, 1)), 2) for t in (x, torch.ones_like(x)))
        x = x if wrong == "counted" else x / ones
        x, y = x.mean((2, 3)) if wrong == "mean" else x.amax((2, 3)), F.softplus(self.lower(meta))
        y = F.linear(y, self.upper.weight, self.upper.bias) if wrong == "by function" else self.upper(y)
        z = x + y if wrong == "sum" else x * y
        z = z if wrong == "half" else z + 0.5 * y
        a, b = F.softmax(self.a(z), 0 if wrong == "axis" else -1), self.b(z)
        return (b, a) if wrong == "swapped" else (a, b)


RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(3, 8, 8, 3)).astype("float32")
STEPS = RNG.normal(size=(3, 5, 6)).astype("float32")
SERIES = RNG.normal(size=(3, 10, 6)).astype("float32")
PAIR = [IMAGES, RNG.normal(size=(3, 5)).astype("float32")]
CUBES = RNG.normal(size=(2, 3, 3, 3)).astype("float32")
TOKENS = np.array([[1, 2, 3, 4, 5, 6], [7, 8, 3, 2, 0, 0], [5, 4, 1, 0, 0, 0]], "int32")


@pytest.fixture(scope="module")
def kerases():
    """The models with weights that are no defaults, and their configs with recorded outputs, through JSON."""
    found = {}
    for make, batch in (
        (images, IMAGES),
        (texts, TOKENS),
        (programs, STEPS),
        (cubes, CUBES),
        (stacks, SERIES),
        (branches, PAIR),
    ):
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
    return kinit.compare(json.loads(config), port, inputs=inputs).outputs


FAULTS = {
    "shifted crop": (Images, "crop", "stem", "windows are shifted", "F.pad(x, (0, 1, 0, 1))"),
    "epsilon of BatchNorm": (Images, "batch eps", "norm", "Keras' epsilon 0.001", "eps=0.001"),
    "statistics of the batch": (Images, "statistics", "norm", "the batch's mean and variance", "model.eval()"),
    "slope of LeakyReLU": (
        Images,
        "slope",
        "leaky",
        "leaky_relu(negative_slope=0.01) where Keras has leaky_relu(negative_slope=0.3)",
        "0.3",
    ),
    "aligned corners": (Images, "corners", "up", "align_corners=True", "align_corners=False"),
    "shifted pooling": (Images, "pool", "pool", "windows are shifted", "F.pad(x, (0, 1, 0, 1)"),
    "transposed crop": (Images, "transpose", "wide", "windows are shifted", "[..., 0:8, 0:8]"),
    "activation missing": (Images, "missing", "wide", "activation is missing: Keras has relu", "F.relu(x)"),
    "flatten permuted": (Images, "flatten", "flat", "channels first (4, 4, 4)", "kinit.flattened(linear, (4, 4, 4))"),
    "GELU by tanh": (Images, "gelu", "hidden", "gelu(approximate='tanh') where Keras has gelu", "F.gelu(x)"),
    "softmax twice": (Images, "twice", "head", "softmax, is applied twice", "once"),
    "mask of an LSTM": (Texts, "mask of an LSTM", "both", "the mask is ignored: 2 of 3", "pack_padded_sequence"),
    "epsilon of LayerNorm": (Texts, "layer eps", "norm", "Keras' epsilon 0.001", "nn.LayerNorm(..., eps=0.001)"),
    "mask of attention": (Texts, "mask of attention", "attention", "the mask is ignored", "key_padding_mask"),
    "mask of the mean": (Texts, "mask of the mean", "mean", "the mask is ignored", "mask.sum(1"),
    "order of a merge": (Texts, "order", "joined", "the other order", "torch.cat"),
    "backward half": (Texts, "backward half", "last", "the backward half's last state is at the first", "h[-2]"),
    "scores not scaled": (Programs, "unscaled", "heads", "not scaled by 1 / sqrt(key_dim)", "math.sqrt"),
    "scores scaled": (Programs, "scaled", "dot", "scaled by 1 / sqrt(d); Keras' Attention does not", "scale=1.0"),
    "another activation": (Programs, "second call", "block", "relu where Keras has tanh", "torch.tanh(x)"),
    "arithmetic": (Programs, "no residual", "embed + heads", "goes on with input 1 of this layer alone", "x + y"),
    "not causal": (Stacks, "causal", "inner/causal", "windows are shifted", "F.pad(x, (4, 0))"),
    "shifted separable": (
        Stacks,
        "separable",
        "inner/separable",
        "padding=(1,); Keras pads [(0, 1)]",
        "F.pad(x, (0, 1)",
    ),
    "activation in time": (Stacks, "selu", "timed", "selu where Keras has elu", "F.elu(x)"),
    "state of a lower layer": (Stacks, "lower state", "second", "goes on with h[0]", "out[:, -1]"),
    "mean of steps": (Stacks, "mean", "second", "goes on with out.mean(1)", "out[:, -1]"),
    "stride": (Branches, "stride", "first", "stride (1, 1) where Keras has (2, 2)", "stride=(2, 2)"),
    "dilation": (Branches, "dilation", "wide", "dilation (1, 1) where Keras has (2, 2)", "dilation=(2, 2)"),
    "norm before relu": (Branches, "norm first", "relu", "activation is missing: Keras has relu", "F.relu(x)"),
    "padding counted": (Branches, "counted", "mean", "the padding counts in the mean", "count_include_pad=False"),
    "mean for largest": (Branches, "mean", "most", "the port takes the mean", "x.amax"),
    "sum for product": (Branches, "sum", "product", "the port has Add where Keras has Multiply", "x * y"),
    "half left out": (Branches, "half", "product + 0.5 * upper", "goes on with the first alone", "x + 0.5 * y"),
    "axis of softmax": (Branches, "axis", "a", "softmax is over axis 0", "dim=-1"),
    "outputs swapped": (Branches, "swapped", "", "the outputs are in another order", "return"),
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


def test_a_layer_that_is_off_in_training_alone(kerases):
    """A BatchNorm that keeps its running statistics in training mode is found in that mode."""
    found = report(kerases, Programs, "frozen")
    assert (found.first_off, found.mode, found.module) == ("norm", "train", "norm")
    assert "running statistics in training mode" in found.cause


def test_weights_are_looked_at_first(kerases):
    """Where a layer's weights are not Keras', they are the cause, by the names that torch has for them."""
    model, config = kerases["programs"]
    port = Programs("unscaled")
    kinit.from_keras(port, model.get_weights())
    with torch.no_grad():
        port.value.bias += 0.1
    found = kinit.compare(json.loads(config), port).outputs
    assert (found.first_off, found.cause) == ("heads", "weights differ: value/bias (value.bias)")
    assert "from_keras" in found.mend


@pytest.mark.parametrize("inputs", [None, torch.from_numpy(CUBES).movedim(-1, 1)], ids=["recorded", "channels first"])
def test_channels_of_inputs(kerases, inputs):
    """The recorded batch is moved where the port needs it, and taken as it is given in the port's own layout."""
    assert report(kerases, Cubes, inputs=inputs).ok


def test_the_order_of_channels_is_a_cause(kerases):
    """A batch with its channels last that the port takes without complaint is named."""
    found = report(kerases, Cubes, inputs=torch.from_numpy(CUBES))
    assert (found.first_off, found.mend) == ("conv", "x.movedim(-1, 1)")
    assert "channels of the inputs are last" in found.cause


@pytest.mark.parametrize("kind", [Images, Texts, Programs, Cubes, Stacks, Branches])
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


def test_the_port_is_left_as_it_was(kerases):
    """Modes, statistics, hooks and torch's generator are as before, whatever the port does in forward."""
    model, config = kerases["images"]
    port = Images("statistics").train()
    port.head.eval()
    kinit.from_keras(port, model.get_weights())
    modes, state = [m.training for m in port.modules()], {k: v.clone() for k, v in port.state_dict().items()}
    generator = torch.get_rng_state()
    port.norm.register_forward_hook(lambda *_: torch.rand(1) and None)
    kinit.compare(json.loads(config), port)
    assert [m.training for m in port.modules()] == modes
    assert all(torch.equal(v, state[k]) for k, v in port.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in port.modules()] == [0, 0, 1, 0, 0, 0, 0]


def test_the_report_as_text_and_as_data(kerases):
    """The text says the layer, the cause and the mend before the rows, and the data is JSON's."""
    model, config = kerases["cubes"]
    port = Cubes()
    kinit.from_keras(port, model.get_weights())
    assert "Outputs: equal in 8 calls of layers." in str(kinit.compare(json.loads(config), port))
    port.head.bias.data += 1
    found = kinit.compare(json.loads(config), port)
    assert not found.ok
    assert "Outputs: off from 'head' (in the port head) on, in eval mode, by up to 1." in str(found)
    assert "Cause: weights differ: bias (head.bias)." in found._repr_html_()
    assert json.loads(json.dumps(found.to_dict()))["outputs"]["rows"][2]["state"] == "off"
    assert repr(found.outputs) == "<OutputReport of 4 calls, off from 'head' on>"


INPUTS = {
    "a tuple": tuple(map(torch.from_numpy, PAIR)),
    "keywords": {"meta": torch.from_numpy(PAIR[1]), "image": torch.from_numpy(IMAGES).movedim(-1, 1)},
}


@pytest.mark.parametrize("inputs", INPUTS.values(), ids=INPUTS)
def test_several_inputs(kerases, inputs):
    """They are given in Keras' order, or by the names of arguments; a weight that a function uses is no fault."""
    found = report(kerases, Branches, "by function", inputs)
    assert found.ok
    assert {row.layer for row in found.rows if row.state == "not seen"} >= {"mean"}


class Scale(kl.Layer):
    """A layer of the program's own, whose initializer nobody keeps."""

    def build(self, shape):
        self.gamma = self.add_weight(shape=shape[-1:], initializer="random_normal", name="gamma")

    def call(self, x):
        return x * self.gamma


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return x * self.weight


def test_a_layer_of_the_programs_own(register):
    """Its outputs are compared though nothing is known of its arguments, which the notes say."""
    register(Scaled, lambda module: [kinit.Variable("gamma", "weight")])
    model = keras.Sequential([keras.Input((4,)), kl.Dense(3, activation="tanh", name="dense"), Scale(name="scale")])
    config = kinit.keras_config(model, inputs=np.ones((2, 4), "float32"))
    right, wrong = (nn.Sequential(nn.Linear(4, 3), layer, Scaled()) for layer in (nn.Tanh(), nn.Sigmoid()))
    for port in (right, wrong):
        kinit.from_keras(port, model.get_weights())
    assert kinit.compare(config, right).ok
    found = kinit.compare(config, wrong)
    assert (found.outputs.first_off, found.outputs.module) == ("dense", "1")
    assert "'scale' is of class Scale" in found.notes[0].what
    with pytest.raises(ValueError, match="initializer None"):
        kinit.replay_keras(right, keras_config=config, backend="torch")


WRONG = {
    "not recorded": (lambda c: c.pop("outputs"), CUBES, "`inputs` compares outputs, and this `keras_config` has none"),
    "other numbers": (lambda c: None, CUBES + 1, "number 0 has shape .* and differs by"),
    "other shape": (lambda c: None, CUBES[:1], r"number 0 has shape \(1, 3, 3, 3\), the recorded one \(2, 3, 3, 3\)\."),
}


@pytest.mark.parametrize(("change", "inputs", "message"), WRONG.values(), ids=WRONG)
def test_other_inputs_are_refused(kerases, change, inputs, message):
    """The batch must be the recorded one."""
    config = json.loads(kerases["cubes"][1])
    change(config)
    with pytest.raises(ValueError, match=message):
        kinit.compare(config, Cubes(), inputs=torch.from_numpy(inputs))


@pytest.mark.parametrize("to", [torch.float16, torch.bfloat16, "meta"], ids=str)
def test_ports_without_precise_outputs_are_refused(kerases, to):
    """Half precision would be off everywhere, and a model on the meta device gives no numbers."""
    with pytest.raises(ValueError, match=r"port\.float\(\)|on the meta device and has no outputs"):
        kinit.compare(json.loads(kerases["cubes"][1]), Cubes().to(to))


@pytest.mark.parametrize(("wrong", "layer"), [("", None), ("frozen", "norm"), ("unscaled", "heads")])
def test_ports_in_double_precision(kerases, wrong, layer):
    """A port in float64 is compared as one in float32 is."""
    model, config = kerases["programs"]
    port = Programs(wrong).double()
    kinit.from_keras(port, model.get_weights())
    assert kinit.compare(json.loads(config), port).outputs.first_off == layer


def test_inputs_that_are_no_tensors_are_refused(kerases):
    """Anything but tensors is an error that says what the port takes."""
    with pytest.raises(TypeError, match=r"`inputs` must hold 1 tensors, .* number 0 is str"):
        kinit.compare(json.loads(kerases["cubes"][1]), Cubes(), inputs="cubes")


def test_an_error_of_the_port_is_its_own(kerases):
    """What the port raises on the batch comes through, and says what it said with the channels first."""
    port = Cubes()
    port.forward = lambda x: port.head(x.flatten(1))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as caught:
        kinit.compare(json.loads(kerases["cubes"][1]), port)
    assert "With the channels first: " in caught.value.__notes__[0]
    assert not any(m._forward_hooks for m in port.modules())
